//! The simulated carriers of a lab: one over SMPP, and one over HTTPS if the lab was made with it.
use super::{Lab, LabError, Placement, SMSC, SMSC_HTTP, files, plan};

impl Lab {
    /// host:port of the control plane of the carrier simulator.
    pub fn smsc_http(&self) -> String {
        plan::local(self.plan.lock().smsc_http_port)
    }

    /// host:port of the control plane of the second carrier simulator.
    pub fn smsc_http_http(&self) -> String {
        plan::local(self.plan.lock().rest_http_port)
    }

    /// Starts the carrier simulator.
    pub fn start_smsc(&self) -> Result<(), LabError> {
        let password = self.read("secrets/sim-password")?;
        let plan = self.plan();
        let mut arguments = vec![
            "smsc".to_owned(),
            format!("--listen={}", plan.smsc()),
            format!("--http-port={}", plan.smsc_http_port),
            format!("--account={}:{}", plan::SYSTEM_ID, password.trim()),
            format!("--profile={}", self.dir.join("smsc-profile.toml").display()),
            format!("--limit={}", plan.lane_limit),
        ];
        if plan.carrier_tls {
            let pki = files::pki_dir(&self.dir);
            arguments.push(format!("--tls-cert={}", pki.join("smsc.pem").display()));
            arguments.push(format!("--tls-key={}", pki.join("smsc.key").display()));
        }
        self.processes.start(SMSC, "carillon-loadtest", &arguments, &Placement::default())
    }

    /// Starts the second carrier simulator, with the profile of the first one as it is now.
    pub fn start_smsc_http(&self) -> Result<(), LabError> {
        let token = self.read("secrets/sim-http-token")?;
        let plan = self.plan();
        let pki = files::pki_dir(&self.dir);
        let arguments = [
            "smsc".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            format!("--http-port={}", plan.rest_http_port),
            format!("--rest-listen={}", plan::local(plan.rest_port)),
            format!("--rest-account={}:{}", plan::REST_ACCOUNT_SID, token.trim()),
            format!("--rest-callback-ca={}", pki.join("carriers-ca.pem").display()),
            format!("--tls-cert={}", pki.join("smsc-http.pem").display()),
            format!("--tls-key={}", pki.join("smsc-http.key").display()),
            format!("--profile={}", self.dir.join("smsc-profile.toml").display()),
            format!("--limit={}", plan.lane_limit),
        ];
        self.processes.start(SMSC_HTTP, "carillon-loadtest", &arguments, &Placement::default())
    }
}
