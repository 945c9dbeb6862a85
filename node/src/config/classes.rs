//! `[classes.<class>]`: what a class sets when the caller does not. A key that is left out keeps its default (ARCHITECTURE.md,
//! "Classes").
//!
//! Give every node of a cluster the same table: the leader of a partition resolves it for what it accepts.
use carillon_core::classes::{ClassPolicy, ClassTable};
use carillon_proto::config::ConfigError;
use carillon_proto::internal::UnknownPolicy;
use carillon_proto::public::{MessageClass, Priority};
use serde::Deserialize;

/// One table for each class.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Classes {
    pub confirmation: ClassKeys,
    pub reminder: ClassKeys,
    pub prescription: ClassKeys,
    pub follow_up: ClassKeys,
    pub recall: ClassKeys,
    pub staff: ClassKeys,
    pub public_health: ClassKeys,
    pub waitlist: ClassKeys,
    pub payment: ClassKeys,
    pub form: ClassKeys,
    pub survey: ClassKeys,
}

/// Who passes when a lane is full.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriorityKey {
    Critical,
    High,
    Normal,
    Bulk,
}

/// What happens to a message whose carrier's answer was lost.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownKey {
    /// It waits for its receipt.
    Hold,
    /// It is sent once more: it may come twice.
    ResendOnce,
    /// It is called undelivered: it may have come.
    Abandon,
}

/// What can be said about a class.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassKeys {
    /// critical, high, normal or bulk.
    pub priority: Option<PriorityKey>,
    /// Life of a message without `expires_at`, from its acceptance, or from `not_before` if that is later. 60 to 2592000.
    pub default_expiry_s: Option<u64>,
    /// Attempts that count, at most. 1 to 20.
    pub attempts_max: Option<u32>,
    /// Delay after the first failed attempt; doubled each time. 100 to 3600000.
    pub backoff_base_ms: Option<u32>,
    /// The longest delay. `backoff_base_ms` to 86400000. All delays together must fit into `default_expiry_s`.
    pub backoff_max_ms: Option<u32>,
    /// hold, resend_once or abandon.
    pub unknown_policy: Option<UnknownKey>,
}

impl ClassKeys {
    fn apply(&self, policy: &mut ClassPolicy) {
        if let Some(priority) = self.priority {
            policy.priority = match priority {
                PriorityKey::Critical => Priority::Critical,
                PriorityKey::High => Priority::High,
                PriorityKey::Normal => Priority::Normal,
                PriorityKey::Bulk => Priority::Bulk,
            };
        }
        if let Some(seconds) = self.default_expiry_s {
            policy.default_expiry_ms = seconds.saturating_mul(1_000);
        }
        let retry = &mut policy.retry;
        retry.attempts_max = self.attempts_max.unwrap_or(retry.attempts_max);
        retry.backoff_base_ms = self.backoff_base_ms.unwrap_or(retry.backoff_base_ms);
        retry.backoff_max_ms = self.backoff_max_ms.unwrap_or(retry.backoff_max_ms);
        if let Some(unknown) = self.unknown_policy {
            let unknown = match unknown {
                UnknownKey::Hold => UnknownPolicy::Hold,
                UnknownKey::ResendOnce => UnknownPolicy::ResendOnce,
                UnknownKey::Abandon => UnknownPolicy::Abandon,
            };
            retry.unknown_policy = unknown as i32;
        }
    }
}

impl Classes {
    fn keys(&self) -> [(MessageClass, &'static str, &ClassKeys); 11] {
        use MessageClass as C;
        [
            (C::Confirmation, "confirmation", &self.confirmation),
            (C::Reminder, "reminder", &self.reminder),
            (C::Prescription, "prescription", &self.prescription),
            (C::FollowUp, "follow_up", &self.follow_up),
            (C::Recall, "recall", &self.recall),
            (C::Staff, "staff", &self.staff),
            (C::PublicHealth, "public_health", &self.public_health),
            (C::Waitlist, "waitlist", &self.waitlist),
            (C::Payment, "payment", &self.payment),
            (C::Form, "form", &self.form),
            (C::Survey, "survey", &self.survey),
        ]
    }

    /// The defaults with what was configured.
    pub fn table(&self) -> Result<ClassTable, ConfigError> {
        let mut table = ClassTable::default();
        for (class, name, keys) in self.keys() {
            let mut policy = table.get(class);
            keys.apply(&mut policy);
            policy.check().map_err(|(part, reason)| ConfigError::Invalid {
                key: format!("classes.{name}.{part}"),
                reason,
            })?;
            table.set(class, policy);
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_core::classes;

    fn parse(text: &str) -> Result<ClassTable, String> {
        let classes: Classes = toml::from_str(text).map_err(|e| e.to_string())?;
        classes.table().map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_said_keeps_its_default() {
        assert_eq!(parse("").unwrap(), ClassTable::default());
        let table = parse(
            "[reminder]\npriority = 'high'\ndefault_expiry_s = 7200\n[staff]\nunknown_policy = 'hold'\nattempts_max = 2\n\
             [survey]\nunknown_policy = 'abandon'\nbackoff_base_ms = 5000\nbackoff_max_ms = 5000\n",
        )
        .unwrap();
        let reminder = table.get(MessageClass::Reminder);
        assert_eq!((reminder.priority, reminder.default_expiry_ms), (Priority::High, 7_200_000));
        assert_eq!(reminder.retry, classes::default_policy(MessageClass::Reminder).retry);
        let staff = table.get(MessageClass::Staff);
        assert_eq!((staff.unknown_policy(), staff.retry.attempts_max), (UnknownPolicy::Hold, 2));
        assert_eq!(staff.priority, Priority::Critical);
        assert_eq!(table.get(MessageClass::Survey).unknown_policy(), UnknownPolicy::Abandon);
        assert_eq!(table.get(MessageClass::Form), classes::default_policy(MessageClass::Form));
    }

    #[test]
    fn each_class_has_its_table() {
        for class in classes::all() {
            let name = class.as_str_name().trim_start_matches("MESSAGE_CLASS_").to_ascii_lowercase();
            let table = parse(&format!("[{name}]\ndefault_expiry_s = 1000000\n")).unwrap();
            let changed: Vec<_> =
                classes::all().filter(|c| table.get(*c).default_expiry_ms == 1_000_000_000).collect();
            assert_eq!(changed, [class]);
        }
    }

    #[test]
    fn each_fault_is_named_with_its_key() {
        for (text, expected) in [
            ("[remindr]\n", "remindr"),
            ("[reminder]\npriorty = 'high'", "priorty"),
            ("[reminder]\npriority = 'urgent'", "urgent"),
            ("[reminder]\nunknown_policy = 'resend'", "resend"),
            ("[reminder]\ndefault_expiry_s = 59", "classes.reminder.default_expiry_s: must be 60 to 2592000"),
            ("[reminder]\ndefault_expiry_s = 2592001", "classes.reminder.default_expiry_s"),
            ("[staff]\nattempts_max = 0", "classes.staff.attempts_max: must be 1 to 20"),
            ("[staff]\nbackoff_base_ms = 99", "classes.staff.backoff_base_ms"),
            ("[staff]\nbackoff_max_ms = 1999", "classes.staff.backoff_max_ms"),
            ("[waitlist]\nattempts_max = 20", "classes.waitlist.attempts_max: is too large"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
