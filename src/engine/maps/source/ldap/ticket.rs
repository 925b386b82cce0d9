//! Kerberos tickets for logging in by GSSAPI.

use super::auth::Auth;
use crate::engine::control::DIRECTORY;
use crate::engine::maps::source::ServiceError;
use crate::sys::kerberos::{self, TicketError};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Command, Stdio};

impl From<TicketError> for ServiceError {
    fn from(error: TicketError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Make this thread use the ticket that the configuration says: one that somebody else keeps fresh, or one of our own,
/// for the key in the host's keytab. Without either, what Kerberos itself finds.
pub fn prepare(auth: &Auth) -> Result<(), ServiceError> {
    let cache = match (&auth.credential_cache, &auth.client_principal) {
        (Some(cache), _) => cache.clone(),
        (None, Some(principal)) => own(principal)?,
        (None, None) => return Ok(()),
    };
    Ok(kerberos::use_cache(&cache)?)
}

/// Get a ticket. A new one for each connection, so that none is too old.
fn own(principal: &str) -> Result<String, ServiceError> {
    let failed =
        |why: String| ServiceError::Unavailable(format!("no Kerberos ticket for {principal}: {why}"));
    // Nobody else can read it.
    let made = DirBuilder::new().mode(0o700).recursive(true).create(DIRECTORY);
    made.map_err(|error| failed(error.to_string()))?;
    let cache = format!("FILE:{DIRECTORY}/ldap-{}.ticket", std::process::id());
    let run = Command::new("kinit").args(["-k", "-c", &cache, "--", principal]).stdin(Stdio::null()).output();
    match run {
        Err(error) => Err(failed(format!("kinit: {error}"))),
        Ok(output) if !output.status.success() => {
            Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Ok(_) => Ok(cache),
    }
}
