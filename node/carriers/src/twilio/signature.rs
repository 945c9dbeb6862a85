//! The signature of a callback: HMAC-SHA1 with the account's auth token over the exact URL and the sorted form.
//!
//! SHA-1 is what Twilio uses; as a MAC it is not affected by its collisions. The comparison takes the same time whatever
//! is wrong.
use crate::clear::Clear;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use zeroize::Zeroizing;

/// The key that callbacks are signed with.
pub(crate) struct SigningKey(hmac::Key);

/// The fields of a form.
pub(crate) type Fields<'a> = [(Cow<'a, str>, Cow<'a, str>)];

impl SigningKey {
    pub fn new(auth_token: &Clear<String>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, auth_token.expose().as_bytes()))
    }

    /// Whether a callback to `url` with these fields was signed with the key. Twilio signs the URL as configured; some of
    /// its senders add the standard port, or leave it out.
    pub fn verifies(&self, url: &str, fields: &Fields<'_>, signature: &str) -> bool {
        let Ok(tag) = STANDARD.decode(signature.trim()) else { return false };
        let other = other_port(url);
        let urls = [Some(url), other.as_deref()];
        urls.into_iter().flatten().any(|url| hmac::verify(&self.0, &signed(url, fields), &tag).is_ok())
    }
}

/// What is signed: the URL, then each field's name and value, in the order of names and without repetitions.
fn signed(url: &str, fields: &Fields<'_>) -> Zeroizing<Vec<u8>> {
    let mut sorted: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let length = sorted.iter().fold(url.len(), |sum, (name, value)| sum + name.len() + value.len());
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    text.extend_from_slice(url.as_bytes());
    for (name, value) in sorted {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(value.as_bytes());
    }
    text
}

/// The same URL with the standard port if it has none, and without it if it has.
fn other_port(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let standard = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if let Some(host) = authority.strip_suffix(standard) {
        return Some(format!("{scheme}://{host}{path}"));
    }
    let has_port =
        authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    (!has_port).then(|| format!("{scheme}://{authority}{standard}{path}"))
}

/// Signs as Twilio does: for tests and simulators.
pub fn sign(auth_token: &str, url: &str, fields: &[(&str, &str)]) -> String {
    let key = SigningKey::new(&Clear::new(auth_token.to_owned()));
    let fields: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        fields.iter().map(|(name, value)| (Cow::Borrowed(*name), Cow::Borrowed(*value))).collect();
    STANDARD.encode(hmac::sign(&key.0, &signed(url, &fields)).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
    const FIELDS: [(&str, &str); 5] = [
        ("Digits", "1234"),
        ("To", "+18005551212"),
        ("From", "+14158675309"),
        ("Caller", "+14158675309"),
        ("CallSid", "CA1234567890ABCDE"),
    ];

    fn verifies(token: &str, url: &str, fields: &[(&str, &str)], signature: &str) -> bool {
        let fields: Vec<_> = fields.iter().map(|(n, v)| (Cow::Borrowed(*n), Cow::Borrowed(*v))).collect();
        SigningKey::new(&Clear::new(token.to_owned())).verifies(url, &fields, signature)
    }

    /// The example of Twilio's own documentation and client libraries.
    #[test]
    fn the_published_example_verifies() {
        let published = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
        assert_eq!(sign("12345", URL, &FIELDS), published);
        assert!(verifies("12345", URL, &FIELDS, published));
    }

    #[test]
    fn anything_that_differs_does_not_verify() {
        let signature = sign("12345", URL, &FIELDS);
        assert!(!verifies("12346", URL, &FIELDS, &signature));
        assert!(!verifies("12345", &URL.replace("bar=2", "bar=3"), &FIELDS, &signature));
        assert!(!verifies("12345", &URL.replace("https", "http"), &FIELDS, &signature));
        assert!(!verifies("12345", URL, &FIELDS[1..], &signature));
        assert!(!verifies("12345", URL, &[], &signature));
        for broken in ["", "not base64!", "AAAA", &signature[1..]] {
            assert!(!verifies("12345", URL, &FIELDS, broken), "{broken}");
        }
    }

    #[test]
    fn order_and_repetition_of_fields_and_the_standard_port_do_not_matter() {
        let signature = sign("12345", URL, &FIELDS);
        let mut mixed = FIELDS.to_vec();
        mixed.reverse();
        mixed.push(FIELDS[0]);
        assert!(verifies("12345", URL, &mixed, &signature));
        assert!(verifies("12345", &URL.replace(".com/", ".com:443/"), &FIELDS, &signature));
        assert!(!verifies("12345", &URL.replace(".com/", ".com:8443/"), &FIELDS, &signature));
        assert_eq!(other_port("https://a?b"), Some("https://a:443?b".to_owned()));
        assert_eq!(other_port("http://a:80/b"), Some("http://a/b".to_owned()));
        assert_eq!(other_port("http://a:81/b"), None);
    }
}
