//! Where the process listens.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use tokio::net::TcpListener;
use tracing::warn;

use crate::run::Error;

/// Listens on an address. Where the kernel has no IPv6, `[::]` means all of IPv4, and that is said.
///
/// # Errors
/// It cannot: the error names what for, and the address.
pub(crate) async fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    bind_by(what, address, TcpListener::bind).await
}

async fn bind_by<L, F>(what: &str, address: SocketAddr, bind: impl Fn(SocketAddr) -> F) -> Result<L, Error>
where
    F: Future<Output = io::Result<L>>,
{
    let failed = |address, error: io::Error| Error::start(format!("{what} on {address}"), error);
    let error = match bind(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let Some(instead) = instead(address, &error) else { return Err(failed(address, error)) };
    let listener = bind(instead).await.map_err(|error| failed(instead, error))?;
    warn!(%address, listens_on = %instead, %error, "there is no IPv6 on this machine: {what} is on IPv4 alone");
    Ok(listener)
}

/// What stands for an address that does not exist: all of IPv4 for all of IPv6, where the kernel was built or started
/// without it, or has it switched off for all interfaces. A single address was meant as it is.
fn instead(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let without_ipv6 = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::PROTONOSUPPORT];
    let is_without = without_ipv6.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    let is_all = address.is_ipv6() && address.ip().is_unspecified();
    (is_without && is_all).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Binds `address` on a machine whose IPv6 and IPv4 fail so; answers what is bound, or what is said.
    async fn bound(address: &str, ipv6: Option<Errno>, ipv4: Option<Errno>) -> String {
        let bind = |address: SocketAddr| async move {
            let errno = if address.is_ipv6() { ipv6 } else { ipv4 };
            errno.map_or(Ok(address), |errno| Err(io::Error::from_raw_os_error(errno.raw_os_error())))
        };
        let bound = bind_by("the door", address.parse().unwrap(), bind).await;
        bound.map_or_else(|error| crate::cli::chain(&error), |address| address.to_string())
    }

    #[tokio::test]
    async fn without_ipv6_everything_listens_on_ipv4() {
        assert_eq!(bound("[::]:8443", None, None).await, "[::]:8443");
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(bound("[::]:8443", Some(errno), None).await, "0.0.0.0:8443");
            assert_eq!(bound("[::]:0", Some(errno), None).await, "0.0.0.0:0");
            let said = bound("[::1]:8443", Some(errno), None).await;
            assert!(said.starts_with("cannot start the door on [::1]:8443: "), "this very address: {said}");
        }
        let said = bound("[::]:8443", Some(Errno::ADDRINUSE), None).await;
        assert!(said.starts_with("cannot start the door on [::]:8443: "), "another failure: {said}");
        let said = bound("[::]:8443", Some(Errno::AFNOSUPPORT), Some(Errno::ADDRINUSE)).await;
        assert!(said.starts_with("cannot start the door on 0.0.0.0:8443: "), "{said}");
    }

    #[tokio::test]
    async fn what_listens_here_can_be_reached_over_ipv4() {
        let listener = bind("a test", "[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (accepted, connected) =
            tokio::join!(listener.accept(), tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
        assert!(accepted.is_ok() && connected.is_ok());
    }
}
