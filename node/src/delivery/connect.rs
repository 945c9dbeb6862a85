//! Makes the connector of a carrier account, whatever its carrier speaks, and keeps the contracts fresh.
use crate::config::Carriers;
use carillon_carriers::contract::{self, Contract, ContractHandle, Contracts, Protocol};
use carillon_carriers::smpp::{SmppConfig, SmppConnector, SmppTuning};
use carillon_carriers::twilio::{TwilioConfig, TwilioConnector, TwilioTuning};
use carillon_carriers::{Clear, Connector, InboundSink};
use carillon_core::classes::is_phi_free;
use carillon_proto::internal::{Baa, CarrierRecord};
use carillon_proto::public::MessageClass;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The directory of contracts is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What every connector of a node needs. Cheap to clone.
#[derive(Clone)]
pub struct Connect {
    secrets_dir: PathBuf,
    ca_pem: Option<String>,
    /// Where carriers reach the callbacks of accounts that do not say so themselves.
    public_url: Option<String>,
    pub contracts: Contracts,
}

/// A connector and what its lane must know.
pub struct Connected {
    pub connector: Arc<dyn Connector>,
    pub contract: ContractHandle,
    pub in_flight_max: u32,
}

impl Connect {
    /// Reads the contracts and the CA; a node does not start on wrong ones.
    pub fn load(secrets_dir: &Path, carriers: &Carriers) -> anyhow::Result<Self> {
        let ca_pem = carriers.ca_file.as_ref().map(fs_err::read_to_string).transpose()?;
        let contracts = Contracts::load(carriers.contracts_dir.as_deref())?;
        let public_url = carriers.callbacks.as_ref().and_then(|callbacks| callbacks.public_url.clone());
        Ok(Self { secrets_dir: secrets_dir.to_owned(), ca_pem, public_url, contracts })
    }

    /// The contract of an account.
    pub fn contract(&self, record: &CarrierRecord) -> Result<ContractHandle, String> {
        let (protocol, built_in) = match (&record.smpp, &record.twilio) {
            (Some(_), None) => (Protocol::Smpp, contract::SMPP_GENERIC),
            (None, Some(_)) => (Protocol::Twilio, contract::TWILIO),
            _ => return Err("the carrier has no settings".to_owned()),
        };
        let name = if record.contract.is_empty() { built_in } else { record.contract.as_str() };
        let handle =
            self.contracts.get(name).ok_or_else(|| format!("there is no contract {name} on this node"))?;
        let contract = handle.get();
        if contract.protocol != protocol {
            return Err(format!("contract {name} is for another protocol"));
        }
        if let Some(most) = contract.segments_per_second_max
            && record.segments_per_second > most
        {
            return Err(format!("contract {name} allows {most} segments per second at most"));
        }
        Ok(handle)
    }

    fn secret(&self, name: &str) -> Result<Clear<String>, String> {
        let text = fs_err::read_to_string(self.secrets_dir.join(name)).map_err(|e| e.to_string())?;
        Ok(Clear::new(text.trim_end().to_owned()))
    }

    /// Starts the connector of an account. Must run inside a tokio runtime.
    pub fn connect(&self, record: &CarrierRecord, sink: Arc<dyn InboundSink>) -> Result<Connected, String> {
        let contract = self.contract(record)?;
        let carrier = record.name.clone();
        if let Some(settings) = record.smpp.clone() {
            let in_flight_max = settings.binds_per_node * settings.window;
            let config = SmppConfig {
                carrier,
                password: self.secret(&settings.password_secret)?,
                settings,
                contract: contract.clone(),
                default_ca_pem: self.ca_pem.clone(),
                tuning: SmppTuning::default(),
            };
            let connector = Arc::new(SmppConnector::start(config, sink).map_err(|e| e.to_string())?);
            return Ok(Connected { connector, contract, in_flight_max });
        }
        let mut settings = record.twilio.clone().ok_or("the carrier has no settings")?;
        if let Some(url) = self.public_url.as_ref().filter(|_| settings.callback_url.is_empty()) {
            settings.callback_url = format!("{}/carriers/{}", url.trim_end_matches('/'), record.name);
        }
        let in_flight_max = settings.connections_per_node;
        let api_key = Some(settings.api_key_secret.as_str()).filter(|name| !name.is_empty());
        let config = TwilioConfig {
            carrier,
            auth_token: self.secret(&settings.auth_token_secret)?,
            api_key_secret: api_key.map(|name| self.secret(name)).transpose()?,
            settings,
            contract: contract.clone(),
            default_ca_pem: self.ca_pem.clone(),
            tuning: TwilioTuning::default(),
        };
        let connector = Arc::new(TwilioConnector::start(config, sink).map_err(|e| e.to_string())?);
        Ok(Connected { connector, contract, in_flight_max })
    }

    /// Whether the account may carry messages of this class: without a business associate agreement only what is free of
    /// PHI. An account that this node cannot judge carries nothing else either.
    pub fn may_carry(&self, record: &CarrierRecord, class: i32) -> bool {
        let class = MessageClass::try_from(class).unwrap_or(MessageClass::Unspecified);
        match self.contract(record) {
            Ok(contract) => carries(record, &contract.get(), class),
            Err(_) => is_phi_free(class),
        }
    }

    /// Reads the contracts again and again. Connectors see a new version with their next message.
    pub async fn keep_fresh(self) {
        let mut told = Vec::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let contracts = self.contracts.clone();
            let Ok(reload) = tokio::task::spawn_blocking(move || contracts.reload()).await else { return };
            for (name, version) in &reload.changed {
                tracing::info!(name, version, "contract loaded");
            }
            metrics::gauge!("carillon_contract_faults").set(reload.errors.len() as f64);
            // Each fault once, not every other second.
            if reload.errors != told {
                for error in &reload.errors {
                    tracing::error!(%error, "contract not loaded; the version before it goes on");
                }
                told = reload.errors;
            }
        }
    }
}

/// Whether an account may carry messages of a class by its contract.
pub fn carries(record: &CarrierRecord, contract: &Contract, class: MessageClass) -> bool {
    let free = contract.phi_free.as_ref().map_or_else(|| is_phi_free(class), |free| free.contains(&class));
    free || has_baa(record, contract)
}

/// There is an agreement: the carrier signs one, and ours is not missing.
pub fn has_baa(record: &CarrierRecord, contract: &Contract) -> bool {
    contract.baa_offered && record.baa() != Baa::None
}
