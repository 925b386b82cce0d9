//! `autofs_ldap_auth.conf`: how to log in.

use crate::sys::ldap::{ClientCertificate, Login};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where it is when `autofs.conf` does not say.
pub const PATH: &str = "/etc/autofs_ldap_auth.conf";

/// How to log in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Encryption of the connection (StartTLS).
    pub tls: Tls,
    /// Logging in.
    pub bind: Bind,
    /// Name and password.
    pub login: Login,
    /// Shown to the server when it asks.
    pub certificate: Option<ClientCertificate>,
    /// Name of the Kerberos principal to log in as.
    pub client_principal: Option<String>,
    /// Where the Kerberos ticket is; it is not renewed here.
    pub credential_cache: Option<String>,
}

/// Encryption of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Not asked for.
    #[default]
    Off,
    /// Where the server can.
    Wanted,
    /// No connection without it.
    Required,
}

/// Logging in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    /// As nobody.
    #[default]
    Anonymous,
    /// With name and password.
    Simple,
    /// By this mechanism of SASL.
    Sasl(String),
    /// By the best mechanism that the server has and that name and password are there for, else as nobody.
    Best,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may read the password.
    #[error("{} must belong to root and be readable by nobody else (chmod 600)", .0.display())]
    Mode(PathBuf),
    /// What it says makes no sense.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Auth {
    /// Read a file. Without the file nobody logs in, unless it was named.
    pub fn read(named: Option<&Path>) -> Result<Self, AuthError> {
        let path = named.unwrap_or(Path::new(PATH));
        let failed = |error| AuthError::Read { path: path.to_owned(), error };
        let meta = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            meta => meta.map_err(failed)?,
        };
        if meta.uid() != 0 || meta.mode() & 0o077 != 0 {
            return Err(AuthError::Mode(path.to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|why| AuthError::Content { path: path.to_owned(), why })
    }

    /// The attributes of the one element that the text has.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document = roxmltree::Document::parse(text).map_err(|error| error.to_string())?;
        let element = document.root_element();
        if element.tag_name().name() != "autofs_ldap_sasl_conf" {
            return Err("the element autofs_ldap_sasl_conf is missing".into());
        }
        let value = |name| element.attribute(name).filter(|value| !value.is_empty());
        let owned = |name| value(name).map(str::to_owned);
        let flag = |name| match value(name).unwrap_or("no").to_ascii_lowercase().as_str() {
            "yes" => Ok(true),
            "no" => Ok(false),
            other => Err(format!("{name} is yes or no, not {other}")),
        };
        let tls = match (flag("usetls")?, flag("tlsrequired")?) {
            (_, true) => Tls::Required,
            (true, false) => Tls::Wanted,
            (false, false) => Tls::Off,
        };
        let mechanism = owned("authtype").map(|mechanism| mechanism.to_ascii_uppercase());
        let bind = match value("authrequired").unwrap_or("no").to_ascii_lowercase().as_str() {
            "no" => Bind::Anonymous,
            "simple" => Bind::Simple,
            "yes" => Bind::Sasl(mechanism.ok_or("authrequired=\"yes\" needs an authtype")?),
            "autodetect" => mechanism.map_or(Bind::Best, Bind::Sasl),
            other => return Err(format!("authrequired is yes, no, autodetect or simple, not {other}")),
        };
        let secret = match (owned("secret"), value("encoded_secret")) {
            (Some(secret), _) => secret,
            (None, Some(encoded)) => decode_base64(encoded).ok_or("encoded_secret is no text in base64")?,
            (None, None) => String::new(),
        };
        let login = Login { user: owned("user").unwrap_or_default(), secret };
        if bind == Bind::Simple && (login.user.is_empty() || login.secret.is_empty()) {
            return Err("authrequired=\"simple\" needs user and secret".into());
        }
        let certificate = match (owned("external_cert"), owned("external_key")) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (None, None) => None,
            _ => return Err("external_cert and external_key belong together".into()),
        };
        let (client_principal, credential_cache) = (owned("clientprinc"), owned("credentialcache"));
        Ok(Self { tls, bind, login, certificate, client_principal, credential_cache })
    }
}

/// `None` when it is not base64, or no text in it.
fn decode_base64(text: &str) -> Option<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim().trim_end_matches('=').bytes() {
        let digit = DIGITS.iter().position(|digit| *digit == byte)?;
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(attributes: &str) -> Result<Auth, String> {
        Auth::parse(&format!(
            "<?xml version=\"1.0\" ?>\n<!-- a comment -->\n<autofs_ldap_sasl_conf {attributes}/>\n"
        ))
    }

    #[test]
    fn without_anything_nobody_logs_in() {
        let installed = parse("usetls=\"no\" tlsrequired=\"no\" authrequired=\"no\"");
        assert_eq!(installed, Ok(Auth::default()));
        assert_eq!(parse(""), Ok(Auth::default()));
    }

    #[test]
    fn ways_to_log_in() {
        let simple =
            parse("authrequired=\"simple\" user=\"cn=a,dc=x\" secret=\"p&amp;q\" usetls=\"yes\"").unwrap();
        let login = Login { user: "cn=a,dc=x".into(), secret: "p&q".into() };
        assert_eq!((simple.bind, simple.login, simple.tls), (Bind::Simple, login, Tls::Wanted));
        let sasl =
            parse("authrequired=\"yes\" authtype=\"digest-md5\" user=\"a\" encoded_secret=\"c2VjcmV0\"")
                .unwrap();
        assert_eq!((sasl.bind, sasl.login.secret.as_str()), (Bind::Sasl("DIGEST-MD5".into()), "secret"));
        assert_eq!(parse("authrequired=\"autodetect\"").unwrap().bind, Bind::Best);
        let external = "authrequired=\"yes\" authtype=\"EXTERNAL\" external_cert=\"/c\" external_key=\"/k\" tlsrequired=\"yes\"";
        let external = parse(external).unwrap();
        assert_eq!((external.tls, external.certificate.unwrap().key.as_str()), (Tls::Required, "/k"));
    }

    #[test]
    fn nonsense_is_an_error() {
        for wrong in [
            "authrequired=\"yes\"",
            "authrequired=\"simple\" user=\"a\"",
            "authrequired=\"maybe\"",
            "usetls=\"perhaps\"",
            "external_cert=\"/c\"",
            "secret=\"",
            "authrequired=\"simple\" user=\"a\" encoded_secret=\"?\"",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(Auth::parse("<other/>").is_err());
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "<autofs_ldap_sasl_conf/>").unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Auth::read(Some(file.path())), Err(AuthError::Mode(_))));
        assert!(matches!(Auth::read(Some(Path::new("/no/such/file"))), Err(AuthError::Read { .. })));
    }
}
