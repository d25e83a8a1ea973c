//! The command line: `hookwright run`, `hookwright front` and `hookwright crds`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ContextValue;
use clap::{Parser, Subcommand};

use crate::config::{Common, Config, FrontConfig};
pub use crate::model::causes::chain;
use crate::model::causes::{clean, clean_value};
use crate::{api, telemetry};

/// A complete webhook delivery system for Kubernetes.
#[derive(Parser, Debug)]
#[command(name = "hookwright", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the operator: controllers, publishing door and deliveries in one process.
    ///
    /// Of a flag that is given twice the last one counts; repeatable ones add up.
    #[command(args_override_self = true)]
    Run(Box<Config>),
    /// Run a front: TLS, identity, rights and discovery; what needs the store is asked of `hookwright run`.
    ///
    /// It keeps nothing: run several behind the Service that the APIService names, so that kube-apiserver is answered
    /// while the one pod with the store is away.
    #[command(args_override_self = true)]
    Front(Box<FrontConfig>),
    /// Print the custom resource definitions as YAML.
    Crds,
}

/// Runs what the command line asks for. 0: done; 1: failed, with the reason on standard error; usage errors end
/// with 2 before this is called.
pub fn execute(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Crds => match std::io::stdout().write_all(api::crds_yaml().as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
        Command::Run(config) => {
            let common = config.common.clone();
            operate(&common, crate::run(*config))
        }
        Command::Front(config) => {
            let common = config.common.clone();
            operate(&common, crate::front(*config))
        }
    }
}

/// Runs a role to its end.
fn operate(config: &Common, role: impl Future<Output = Result<(), crate::Error>>) -> ExitCode {
    if let Err(error) = telemetry::start(config.log_format, config.log.as_deref()) {
        complain(&error);
        return ExitCode::from(2);
    }
    crate::process::raise_open_files();
    match block_on(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot go on");
            ExitCode::FAILURE
        }
    }
}

fn block_on(role: impl Future<Output = Result<(), crate::Error>>) -> Result<(), crate::Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|source| {
        crate::Error::Start { what: "the async runtime".to_owned(), source: source.into() }
    })?;
    let result = runtime.block_on(role);
    // Blocking look-ups that hang must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

fn complain(error: &dyn std::error::Error) {
    let _ = writeln!(std::io::stderr(), "hookwright: {}", chain(error));
}

/// Reads the command line of this process. What cannot be understood ends it with 2, without repeating the userinfo of
/// a URL, wherever it was given; `--help` and `--version` with 0.
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let text = error.render().to_string();
        let cleaned = said(&error, &text);
        if cleaned == text {
            error.exit();
        }
        let _ = std::io::stderr().write_all(cleaned.as_bytes());
        std::process::exit(error.exit_code())
    })
}

/// What is said of a command line that cannot be understood.
fn said(error: &clap::Error, text: &str) -> String {
    let mut text = text.to_owned();
    for (_, value) in error.context() {
        let values = match value {
            ContextValue::String(value) => std::slice::from_ref(value),
            ContextValue::Strings(values) => values.as_slice(),
            _ => &[],
        };
        for value in values {
            // As it was given, and as a message of ours repeats it.
            let debug = |value: &str| format!("{value:?}");
            text = text.replace(&debug(value), &debug(&clean_value(value)));
            text = text.replace(&**value, &clean_value(value));
        }
    }
    clean(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_take_lists_durations_and_a_service() {
        let cli = Cli::try_parse_from([
            "hookwright",
            "run",
            "--allow-cidr=127.0.0.0/8,10.0.0.0/8",
            "--allow-cidr=::1/128",
            "--purge-grace=1m30s",
            "--service=hookwright-system/hookwright",
        ])
        .unwrap();
        let Command::Run(config) = cli.command else { panic!("{cli:?}") };
        assert_eq!(config.allow_cidr.len(), 3);
        assert_eq!(config.purge_grace, std::time::Duration::from_secs(90));
        assert_eq!(config.common.service.name, "hookwright");
        for bad in ["--purge-grace=-1s", "--service=a", "--service=a/b/c", "--allow-cidr=10.0.0.0/33"] {
            assert!(Cli::try_parse_from(["hookwright", "run", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_line_that_is_wrong_is_explained_without_passwords() {
        let mut repeated = 0;
        for argument in [
            "--backend=https://user:canary@store",
            "--backend=https://user:can ary\"'@store",
            "--backend=user:canary@store:x",
            "--metrics-listen=http://user:canary@[::]:8080",
            "--listen=canary:canary@[::]:8080",
            "--service=https://user:canary@a",
            "--max-body-bytes=http://canary@h",
            "--shutdown-grace=http://canary@h",
            "--log-format=http://user:canary@h",
            "--api-service=http://user:canary@h",
            "--proxy=http://user:canary@h",
            "--http://user:canary@h",
            "http://user:canary@h",
        ] {
            let arguments = ["hookwright", "front", "--backend=a:1", argument];
            let error = Cli::try_parse_from(arguments).unwrap_err();
            let text = error.render().to_string();
            repeated += usize::from(text.contains("ary"));
            let said = said(&error, &text);
            assert!(!said.contains("canary") && !said.contains("ary\""), "{said}");
        }
        assert!(repeated >= 10, "{repeated}");
        let error = Cli::try_parse_from(["hookwright", "run", "--allow-cidr=10.0.0.0/33"]).unwrap_err();
        let text = error.render().to_string();
        assert_eq!(said(&error, &text), text);
    }

    #[test]
    fn sizes_are_quantities_and_defaults_are_shown_as_such() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from([&["hookwright", "run"], arguments].concat()).map(|cli| {
                let Command::Run(config) = cli.command else { panic!("{cli:?}") };
                config
            })
        };
        let config = parse(&[]).unwrap();
        assert_eq!((config.retention_bytes, config.quota_pending_bytes), (1 << 30, 1 << 30));
        assert_eq!((config.common.max_body_bytes, config.min_free_bytes), (1 << 20, 256 << 20));
        let config = parse(&["--retention-bytes=1.5Gi", "--max-body-bytes=2097152"]).unwrap();
        assert_eq!((config.retention_bytes, config.common.max_body_bytes), (3 << 29, 2 << 20));
        let error = parse(&["--retention-bytes=1GiB"]).unwrap_err().to_string();
        assert!(error.contains("write 1Gi, as Kubernetes does"), "{error}");
        let help = Cli::command().find_subcommand_mut("run").unwrap().render_long_help().to_string();
        for default in ["[default: 1Gi]", "[default: 1Mi]", "[default: 256Mi]", "[default: 1000]"] {
            assert!(help.contains(default), "{default} in {help}");
        }
    }

    #[test]
    fn a_front_takes_what_every_role_has_and_where_the_store_is() {
        let parse = |backend: &str| {
            let arguments = ["hookwright", "front", "--listen=127.0.0.1:1", "--backend", backend];
            Cli::try_parse_from(arguments).map(|cli| match cli.command {
                Command::Front(config) => config.backend.to_string(),
                other => panic!("{other:?}"),
            })
        };
        for good in ["hookwright-store.hookwright-system.svc:443", "127.0.0.1:8443", "[::1]:8443"] {
            assert_eq!(parse(good).unwrap(), good);
        }
        for bad in ["hookwright-store", ":443", "a:0", "a:65536", "a:"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(Cli::try_parse_from(["hookwright", "front"]).is_err(), "without --backend");
        let run_only = ["hookwright", "front", "--backend=a:1", "--data-dir=data"];
        assert!(Cli::try_parse_from(run_only).is_err());
    }

    #[test]
    fn every_flag_has_an_environment_variable_of_its_name() {
        let command = Cli::command();
        for role in ["run", "front"] {
            let role = command.find_subcommand(role).unwrap();
            for argument in role.get_arguments().filter(|argument| argument.get_id() != "help") {
                let expected = format!("HOOKWRIGHT_{}", argument.get_id().as_str().to_uppercase());
                assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(&*expected));
            }
        }
    }
}
