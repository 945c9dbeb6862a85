//! The rules of the hours that are in force on this node: parsed once for each version of the meta group's record.
use carillon_core::meta::{MetaView, level};
use carillon_delivery::hours::{Rulebook, Stamps};
use parking_lot::RwLock;
use std::sync::Arc;

/// Cheap to clone.
#[derive(Clone)]
pub struct Hours {
    in_force: Arc<RwLock<(u64, Arc<Rulebook>)>>,
}

impl Default for Hours {
    fn default() -> Self {
        Self { in_force: Arc::new(RwLock::new((0, Arc::new(Rulebook::built_in())))) }
    }
}

impl Hours {
    /// The rules of this view.
    pub fn of(&self, view: &MetaView) -> Arc<Rulebook> {
        let record = &view.hours;
        {
            let known = self.in_force.read();
            if known.0 == record.version {
                return known.1.clone();
            }
        }
        let book = match record.rules.as_str() {
            "" => Rulebook::built_in(),
            rules => Rulebook::parse(rules).unwrap_or_else(|error| {
                // Whoever proposed them has read them: this program is older. The built-in ones are the cautious choice.
                tracing::error!(%error, version = record.version, "rules of hours unreadable, using those built in");
                Rulebook::built_in()
            }),
        };
        tracing::info!(version = record.version, name = book.name(), stamp = book.stamp(), "rules of hours");
        let book = Arc::new(book);
        *self.in_force.write() = (record.version, book.clone());
        book
    }

    /// What the scheduler holds messages to; nothing while a node of the cluster does not know hours.
    pub fn stamps(&self, view: &MetaView) -> Stamps {
        match view.level >= level::LEVEL_DELIVERY {
            true => self.of(view).stamps(view.practices.values()),
            false => Stamps::default(),
        }
    }
}
