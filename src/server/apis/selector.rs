//! Field selectors: which lines of the log, and what of that the store can find by itself.

use super::labels::{LabelSelector, Labels};
use crate::api::webhook::DeliveryState;
use crate::server::status::{Failure, Reason};
use crate::store::records::{Delivery, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Webhook,
    EventId,
    EventSource,
    EventType,
    Test,
    State,
}

/// What can be selected by.
const FIELDS: [(&str, Field); 8] = [
    ("metadata.name", Field::Name),
    ("metadata.namespace", Field::Namespace),
    ("spec.webhook", Field::Webhook),
    ("spec.eventId", Field::EventId),
    ("spec.eventSource", Field::EventSource),
    ("spec.eventType", Field::EventType),
    ("spec.test", Field::Test),
    ("status.state", Field::State),
];

const STATES: [(&str, DeliveryState); 5] = [
    ("Pending", DeliveryState::Pending),
    ("Retrying", DeliveryState::Retrying),
    ("Held", DeliveryState::Held),
    ("Success", DeliveryState::Success),
    ("Failed", DeliveryState::Failed),
];

/// As people write it.
pub(super) fn state_name(state: DeliveryState) -> &'static str {
    STATES.iter().find(|(_, known)| *known == state).map_or("", |(name, _)| name)
}

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    field: Field,
    value: String,
    equal: bool,
}

/// Which deliveries are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Selection {
    fields: Vec<Requirement>,
    pub(super) labels: LabelSelector,
}

impl Selection {
    /// Reads both selectors of a request.
    pub(super) fn parse(fields: &str, labels: &str) -> Result<Self, Failure> {
        let fields = terms(fields).iter().map(|term| requirement(term)).collect::<Result<_, _>>()?;
        Ok(Self { fields, labels: LabelSelector::parse(labels)? })
    }

    fn required(&self, field: Field) -> Option<&str> {
        let equal = |requirement: &&Requirement| requirement.field == field && requirement.equal;
        self.fields.iter().find(equal).map(|requirement| requirement.value.as_str())
    }

    /// The one name that is wanted.
    pub(super) fn name(&self) -> Option<&str> {
        self.required(Field::Name)
    }

    /// The one namespace that is wanted.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.required(Field::Namespace)
    }

    /// The one Webhook that is wanted, by name.
    pub(super) fn webhook(&self) -> Option<&str> {
        self.required(Field::Webhook)
    }

    /// The one id of events that is wanted.
    pub(super) fn event_id(&self) -> Option<&str> {
        self.required(Field::EventId)
    }

    /// The one type of events that is wanted.
    pub(super) fn event_type(&self) -> Option<&str> {
        self.required(Field::EventType)
    }

    /// Whether tests are wanted, or what is none.
    pub(super) fn test(&self) -> Option<bool> {
        let required = self.fields.iter().find(|requirement| requirement.field == Field::Test)?;
        Some((required.value == "true") == required.equal)
    }

    /// The states that are wanted, as people see them.
    fn shown_states(&self) -> impl Iterator<Item = DeliveryState> {
        let of_state = |requirement: &&Requirement| requirement.field == Field::State;
        STATES.into_iter().filter_map(move |(name, state)| {
            let mut requirements = self.fields.iter().filter(of_state);
            requirements.all(|required| (required.value == name) == required.equal).then_some(state)
        })
    }

    /// The states in the store that can be shown as one that is wanted; empty: there are none.
    pub(super) fn stored_states(&self) -> Vec<State> {
        let mut states: Vec<_> = self
            .shown_states()
            .flat_map(|state| match state {
                DeliveryState::Pending => [State::Pending; 2],
                DeliveryState::Retrying => [State::Retrying; 2],
                DeliveryState::Held => [State::Pending, State::Retrying],
                DeliveryState::Success => [State::Success; 2],
                DeliveryState::Failed => [State::Failed; 2],
            })
            .collect();
        states.sort_unstable();
        states.dedup();
        states
    }

    /// Whether each line that the store finds has to be looked at.
    pub(super) fn looks_closer(&self) -> bool {
        let by_store = |required: &Requirement| match required.field {
            Field::Namespace | Field::Webhook | Field::EventId | Field::EventType => {
                required.equal && self.required(required.field) == Some(required.value.as_str())
            }
            Field::State => self.is_as_stored(),
            Field::Name | Field::EventSource | Field::Test => false,
        };
        !self.labels.is_empty() || !self.fields.iter().all(by_store)
    }

    /// Whether the states that are wanted are states of the store: what waits may be shown as Held.
    fn is_as_stored(&self) -> bool {
        let waiting = [DeliveryState::Pending, DeliveryState::Retrying, DeliveryState::Held];
        let shown: Vec<_> = self.shown_states().filter(|state| waiting.contains(state)).collect();
        shown.is_empty() || shown.len() == waiting.len()
    }

    /// Whether a line that is shown in this state and with these labels is wanted.
    pub(super) fn admits(&self, delivery: &Delivery, state: DeliveryState, labels: &Labels) -> bool {
        let is = |required: &Requirement| {
            let value = required.value.as_str();
            match required.field {
                Field::Name => delivery.name.to_string() == value,
                Field::Namespace => &*delivery.webhook.namespace == value,
                Field::Webhook => &*delivery.webhook.name == value,
                Field::EventId => &*delivery.event_id == value,
                Field::EventSource => delivery.event_source.as_deref() == Some(value),
                Field::EventType => &*delivery.event_type == value,
                Field::Test => delivery.test == (value == "true"),
                Field::State => state_name(state) == value,
            }
        };
        self.fields.iter().all(|required| is(required) == required.equal) && self.labels.admits(labels)
    }
}

/// One term, its values still escaped: Kubernetes escapes `,`, `=` and `\` by a backslash.
fn terms(text: &str) -> Vec<String> {
    let (mut terms, mut term, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(std::mem::take(&mut term));
        } else {
            term.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    terms.push(term);
    terms.retain(|term| !term.trim().is_empty());
    terms
}

fn requirement(term: &str) -> Result<Requirement, Failure> {
    let read = term.find(['=', '!']).and_then(|at| term.split_at_checked(at)).and_then(|(name, rest)| {
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((name.trim(), equal, unescaped(value)?));
            }
        }
        None
    });
    let Some((name, equal, value)) = read else {
        return Err(refusal(term, "write FIELD=VALUE, FIELD==VALUE or FIELD!=VALUE"));
    };
    let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) else {
        let known = FIELDS.map(|(name, _)| name).join(", ");
        return Err(refusal(name, &format!("the field must be one of {known}")));
    };
    let known = match field {
        Field::State => STATES.iter().any(|(state, _)| *state == value),
        Field::Test => value == "true" || value == "false",
        _ => true,
    };
    if !known {
        let values =
            if *field == Field::Test { "true, false" } else { "Pending, Retrying, Held, Success, Failed" };
        return Err(refusal(term, &format!("the value must be one of {values}")));
    }
    Ok(Requirement { field: *field, value, equal })
}

fn unescaped(value: &str) -> Option<String> {
    let (mut text, mut chars) = (String::new(), value.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|c| ['\\', ',', '='].contains(c))?),
            c => text.push(c),
        }
    }
    Some(text)
}

fn refusal(part: &str, what: &str) -> Failure {
    let shown: String = part.chars().filter(|c| !c.is_control()).take(100).collect();
    Failure::new(Reason::BadRequest, format!("fieldSelector cannot be used at {shown:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::apis::object::tests::delivery;

    fn admits(selector: &str, state: DeliveryState) -> bool {
        let selection = Selection::parse(selector, "").unwrap();
        selection.admits(&delivery("team-a", "orders", 7), state, &Labels::new())
    }

    #[test]
    fn each_field_selects_by_each_operator() {
        let name = delivery("team-a", "orders", 7).name;
        for (selector, expected) in [
            (String::new(), true),
            (format!("metadata.name={name}"), true),
            (format!("metadata.name!={name}"), false),
            ("metadata.namespace==team-a".to_owned(), true),
            ("metadata.namespace=team-b".to_owned(), false),
            ("spec.webhook=orders".to_owned(), true),
            ("spec.webhook!=orders".to_owned(), false),
            (r"spec.eventId=7\,\=\\".to_owned(), true),
            ("spec.eventId=7".to_owned(), false),
            ("spec.eventSource=/shop".to_owned(), true),
            ("spec.eventSource!=/shop".to_owned(), false),
            ("spec.eventSource=/other".to_owned(), false),
            ("spec.eventType=order.created,spec.test=false".to_owned(), true),
            ("spec.eventType=order.created,spec.test!=false".to_owned(), false),
            ("spec.test=true".to_owned(), false),
            ("status.state=Held".to_owned(), true),
            ("status.state!=Held".to_owned(), false),
            ("status.state!=Failed,status.state!=Success".to_owned(), true),
        ] {
            assert_eq!(admits(&selector, DeliveryState::Held), expected, "{selector}");
        }
    }

    #[test]
    fn the_store_is_asked_for_the_states_that_can_be_shown_as_those_wanted() {
        use State::{Failed, Pending, Retrying, Success};
        for (selector, states) in [
            ("", vec![Pending, Retrying, Success, Failed]),
            ("status.state=Held", vec![Pending, Retrying]),
            ("status.state=Pending", vec![Pending]),
            ("status.state=Retrying", vec![Retrying]),
            ("status.state=Failed", vec![Failed]),
            ("status.state!=Held", vec![Pending, Retrying, Success, Failed]),
            ("status.state!=Success,status.state!=Held", vec![Pending, Retrying, Failed]),
            ("status.state=Failed,status.state=Held", vec![]),
        ] {
            assert_eq!(Selection::parse(selector, "").unwrap().stored_states(), states, "{selector}");
        }
    }

    #[test]
    fn what_the_store_finds_by_itself_needs_no_closer_look() {
        for (fields, labels, closer) in [
            ("", "", false),
            ("spec.webhook=orders,metadata.namespace=team-a", "", false),
            ("spec.webhook!=orders", "", true),
            ("spec.eventId=7", "", false),
            ("spec.eventId=7,spec.eventSource=/shop", "", true),
            ("spec.eventId!=7", "", true),
            ("spec.eventId=7,spec.eventId=8", "", true),
            ("spec.eventType=order.created", "", false),
            ("status.state=Failed", "", false),
            ("status.state!=Success", "", false),
            ("status.state!=Held", "", true),
            ("status.state=Pending", "", true),
            ("status.state=Failed,status.state=Held", "", false),
            ("status.state=Failed,spec.test=true", "", true),
            ("", "a=b", true),
        ] {
            assert_eq!(Selection::parse(fields, labels).unwrap().looks_closer(), closer, "{fields} {labels}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_with_those_known() {
        for (bad, says) in [
            ("status.outcome=Failed", "spec.webhook, spec.eventId"),
            ("=x", "must be one of metadata.name"),
            ("spec.webhook", "FIELD=VALUE"),
            ("spec.webhook!orders", "FIELD=VALUE"),
            (r"spec.webhook=a\b", "FIELD=VALUE"),
            ("status.state=failed", "Pending, Retrying, Held, Success, Failed"),
            ("spec.test=yes", "true, false"),
        ] {
            let failure = Selection::parse(bad, "").unwrap_err();
            assert_eq!(failure.reason, Reason::BadRequest, "{bad}");
            assert!(failure.message.contains(says), "{bad}: {}", failure.message);
        }
    }
}
