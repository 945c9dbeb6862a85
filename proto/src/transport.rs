//! Why a call never reached a handler: the causes behind "transport error", and what the caller can do.
//!
//! Owns: finding the cause in the chain of a `tonic::Status`, one sentence for it, and one remedy. Errors that a handler gave
//! carry an ErrorInfo and are no business of this module.
//! Nothing of a request is ever in these texts.
use crate::tls::OtherIdentity;
use rustls::{AlertDescription, CertificateError, Error as TlsFault};
use std::error::Error;
use std::io;
use tonic::{Code, Status};

/// What went wrong between caller and server.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// Nobody listens there.
    Refused,
    /// The name does not resolve, or there is no way to it.
    Unreachable(String),
    /// No connection within the time for it.
    ConnectTimeout,
    /// The server refused our certificate or our version of TLS, with this alert.
    Alert(AlertDescription),
    /// We refused the server's certificate.
    ServerCertificate(CertificateError),
    /// The server is not the one that we wanted.
    OtherIdentity,
    /// The connection was there and broke.
    Broken,
    /// The deadline of the call passed.
    Deadline,
    /// Something else; the text of the last cause.
    Other(String),
}

impl Cause {
    /// `None` when a handler answered, which is not a failure of the transport.
    pub fn of(status: &Status) -> Option<Self> {
        if crate::errors::reason_of(status).is_some() {
            return None;
        }
        let mut last = status.message().to_owned();
        let mut next = status.source();
        while let Some(error) = next {
            if let Some(cause) = of_error(error) {
                return Some(cause);
            }
            last = error.to_string();
            next = error.source();
        }
        match status.code() {
            // The client's own timer says CANCELLED ("Timeout expired"), the server's DEADLINE_EXCEEDED.
            Code::DeadlineExceeded => Some(Self::Deadline),
            Code::Cancelled if last.contains("imeout") => Some(Self::Deadline),
            Code::Unavailable | Code::Unknown | Code::Cancelled => Some(Self::Other(last)),
            _ => None,
        }
    }

    /// Whether the call may have had an effect although there was no answer.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::Broken | Self::Deadline | Self::Other(_))
    }

    /// The handshake failed on a certificate: the same call fails again until somebody has changed one. Never worth a repeat.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::ServerCertificate(_) | Self::OtherIdentity => true,
            Self::Alert(alert) => {
                !matches!(alert, AlertDescription::CloseNotify | AlertDescription::UserCanceled)
            }
            _ => false,
        }
    }

    /// What the caller should do.
    pub fn remedy(&self) -> &'static str {
        use CertificateError as C;
        match self {
            Self::Refused => "start the server, or correct the address and port",
            Self::Unreachable(_) | Self::ConnectTimeout => "check the address, the network and firewalls",
            Self::Alert(AlertDescription::CertificateExpired) => "renew the certificate",
            Self::Alert(AlertDescription::ProtocolVersion) => "use TLS 1.3",
            Self::Alert(AlertDescription::CertificateRequired) => "give a certificate and its key",
            Self::Alert(_) => "use a certificate of the CA that this server trusts; each plane has its own",
            Self::ServerCertificate(C::Expired | C::ExpiredContext { .. }) => {
                "renew the server's certificate, or set this machine's clock"
            }
            Self::ServerCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
                "set the clocks of this machine and of the server"
            }
            Self::ServerCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
                "use an address that is in the server's certificate, or give the server one with this address"
            }
            Self::ServerCertificate(C::UnknownIssuer | C::BadSignature) => {
                "give the CA of this server; each plane has its own"
            }
            Self::ServerCertificate(_) => {
                "give the CA of this server, and the name or address that is in its certificate"
            }
            Self::OtherIdentity => "check the address: another process answers there",
            Self::Broken | Self::Deadline | Self::Other(_) => {
                "it may have been done: repeat it with the same idempotency key, or look"
            }
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use CertificateError as C;
        match self {
            Self::Refused => f.write_str("connection refused: nothing listens there"),
            Self::Unreachable(why) => write!(f, "the address cannot be reached: {why}"),
            Self::ConnectTimeout => f.write_str("no connection within the time for it"),
            Self::Alert(AlertDescription::CertificateExpired) => {
                f.write_str("the server refused our certificate: it has expired")
            }
            Self::Alert(AlertDescription::UnknownCA) => {
                f.write_str("the server refused our certificate: it does not trust its CA")
            }
            Self::Alert(AlertDescription::CertificateRequired) => {
                f.write_str("the server wants a certificate and was given none")
            }
            Self::Alert(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError),
            ) => write!(f, "the server refused our certificate: {alert:?}"),
            Self::Alert(alert) => write!(f, "the server ended the TLS handshake: {alert:?}"),
            Self::ServerCertificate(C::UnknownIssuer | C::BadSignature) => {
                f.write_str("the server's certificate is not from the CA that was given")
            }
            Self::ServerCertificate(C::Expired | C::ExpiredContext { .. }) => {
                f.write_str("the server's certificate has expired")
            }
            Self::ServerCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
                f.write_str("the server's certificate is not valid yet")
            }
            Self::ServerCertificate(why) => write!(f, "the server's certificate is not good: {why}"),
            Self::OtherIdentity => f.write_str("the server has another identity"),
            Self::Broken => f.write_str("the connection broke before the answer came"),
            Self::Deadline => f.write_str("no answer within the deadline"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// What one link of the chain says. I/O errors hide what they wrap from `source`, so it is looked for.
fn of_error(error: &(dyn Error + 'static)) -> Option<Cause> {
    if error.is::<OtherIdentity>() {
        return Some(Cause::OtherIdentity);
    }
    if let Some(fault) = error.downcast_ref::<TlsFault>() {
        return match fault {
            TlsFault::AlertReceived(alert) => Some(Cause::Alert(*alert)),
            TlsFault::InvalidCertificate(why) => Some(Cause::ServerCertificate(why.clone())),
            other => Some(Cause::Other(other.to_string())),
        };
    }
    let io = error.downcast_ref::<io::Error>()?;
    if let Some(inner) = io.get_ref()
        && let Some(cause) = of_error(inner)
    {
        return Some(cause);
    }
    match io.kind() {
        io::ErrorKind::ConnectionRefused => Some(Cause::Refused),
        io::ErrorKind::TimedOut => Some(Cause::ConnectTimeout),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NotFound => {
            Some(Cause::Unreachable(io.to_string()))
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Some(Cause::Broken),
        // Names that do not resolve have no kind of their own.
        _ if io.to_string().contains("lookup address") => Some(Cause::Unreachable(io.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors;
    use crate::public::ErrorReason;

    fn status(error: impl Error + Send + Sync + 'static) -> Status {
        let mut status = Status::unavailable("transport error");
        status.set_source(std::sync::Arc::new(error));
        status
    }

    #[test]
    fn the_cause_is_found_however_deep_it_is() {
        let tls = |fault| io::Error::new(io::ErrorKind::InvalidData, fault);
        let alert = TlsFault::AlertReceived(AlertDescription::CertificateExpired);
        let deep = io::Error::other(tls(alert));
        let cause = Cause::of(&status(deep)).unwrap();
        assert_eq!(cause, Cause::Alert(AlertDescription::CertificateExpired));
        assert!(cause.to_string().contains("expired") && cause.remedy().contains("renew"));
        let issuer = TlsFault::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(
            Cause::of(&status(tls(issuer))),
            Some(Cause::ServerCertificate(CertificateError::UnknownIssuer))
        );
        assert_eq!(
            Cause::of(&status(io::Error::from(io::ErrorKind::ConnectionRefused))),
            Some(Cause::Refused)
        );
        assert_eq!(Cause::of(&status(io::Error::other(OtherIdentity))), Some(Cause::OtherIdentity));
        assert_eq!(Cause::of(&Status::cancelled("Timeout expired")), Some(Cause::Deadline));
    }

    #[test]
    fn what_fails_on_a_certificate_is_for_good_and_each_has_its_remedy() {
        let server = |why| Cause::ServerCertificate(why);
        for (cause, text, remedy) in [
            (server(CertificateError::UnknownIssuer), "is not from the CA", "give the CA of this server"),
            (server(CertificateError::Expired), "certificate has expired", "renew the server's certificate"),
            (server(CertificateError::NotValidYet), "not valid yet", "clocks"),
            (server(CertificateError::NotValidForName), "is not good", "an address that is in the server's"),
            (Cause::Alert(AlertDescription::CertificateExpired), "it has expired", "renew the certificate"),
            (
                Cause::Alert(AlertDescription::UnknownCA),
                "does not trust its CA",
                "use a certificate of the CA",
            ),
            (Cause::Alert(AlertDescription::CertificateRequired), "was given none", "give a certificate"),
            (Cause::Alert(AlertDescription::BadCertificate), "refused our certificate", "use a certificate"),
            (Cause::OtherIdentity, "another identity", "check the address"),
        ] {
            assert!(cause.is_permanent() && !cause.is_uncertain(), "{cause:?}");
            assert!(cause.to_string().contains(text), "{cause}");
            assert!(cause.remedy().contains(remedy), "{cause:?}: {}", cause.remedy());
        }
        for cause in [Cause::Refused, Cause::ConnectTimeout, Cause::Broken, Cause::Deadline] {
            assert!(!cause.is_permanent(), "{cause:?}");
        }
    }

    #[test]
    fn only_what_may_have_been_done_is_uncertain_and_an_answer_is_no_failure() {
        assert!(!Cause::Refused.is_uncertain() && !Cause::Alert(AlertDescription::UnknownCA).is_uncertain());
        assert!(Cause::Deadline.is_uncertain() && Cause::Broken.is_uncertain());
        assert_eq!(Cause::of(&errors::status(ErrorReason::PartitionUnavailable, "x")), None);
        assert_eq!(Cause::of(&Status::failed_precondition("x")), None);
    }
}
