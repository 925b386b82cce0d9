//! Maps in LDAP.
//!
//! The library that every program uses asks the server, so that `ldap.conf`, certificates and Kerberos tickets count as
//! elsewhere. How the directory writes maps is found out.

pub mod auth;
mod place;
mod schema;
mod ticket;

use super::remote::{Client, KeyValue, ServiceError};
use crate::engine::maps::conf::{self, Schema};
use crate::sys::ldap::{Connection, Entry, LdapError, NO_SUCH_OBJECT, SERVER_DOWN, Scope};
use auth::{Auth, AuthError, Bind, Tls};
pub use place::Place;
use schema::{map_attributes, map_filter, schema_of};
use std::time::Duration;

/// How long connecting may take, and each answer, when `autofs.conf` does not say.
const USUAL_LIMIT: Duration = Duration::from_secs(8);
/// More than this no question to all servers together may take: less than a lookup has.
const LIMIT_MAX: Duration = Duration::from_secs(45);

/// One map.
pub struct LdapClient {
    place: Place,
    conf: conf::Ldap,
    network_limit: Duration,
    limit: Duration,
    open: Option<Open>,
}

/// A connection, and the map there.
struct Open {
    connection: Connection,
    dn: String,
    schema: Schema,
}

/// How long a question to the servers of a place may take.
pub fn limit(place: &Place, conf: &conf::Ldap) -> Duration {
    let each = conf.network_timeout.unwrap_or(USUAL_LIMIT) + conf.timeout.unwrap_or(USUAL_LIMIT);
    let servers = u32::try_from(place.servers.len().max(1)).unwrap_or(u32::MAX);
    each.saturating_mul(servers).min(LIMIT_MAX)
}

impl From<LdapError> for ServiceError {
    fn from(error: LdapError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<AuthError> for ServiceError {
    fn from(error: AuthError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl LdapClient {
    /// A map; nobody is asked yet.
    pub fn new(place: Place, conf: conf::Ldap) -> Self {
        let network_limit = conf.network_timeout.unwrap_or(USUAL_LIMIT);
        let limit = conf.timeout.unwrap_or(USUAL_LIMIT);
        Self { place, conf, network_limit, limit, open: None }
    }

    /// Search the entries of the map. A connection that the server closed meanwhile is made again, once.
    fn search(&mut self, filter: impl Fn(&Schema) -> String) -> Result<(Vec<Entry>, Schema), ServiceError> {
        for again in [true, false] {
            let limit = self.limit;
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.connect()?,
            };
            let schema = open.schema.clone();
            let attributes = [schema.entry_attribute.as_str(), schema.value_attribute.as_str()];
            let filter = filter(&schema);
            match open.connection.search(Some(&open.dn), Scope::Subtree, &filter, &attributes, limit) {
                Ok(found) => {
                    self.open = Some(open);
                    return Ok((found, schema));
                }
                Err(error) if error.code() == Some(SERVER_DOWN) && again => {}
                // The map was there, and has been taken away or moved: it is looked for again.
                Err(error) if error.code() == Some(NO_SUCH_OBJECT) && again => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ServiceError::NoMap)
    }

    /// The first server that has the map.
    fn connect(&self) -> Result<Open, ServiceError> {
        let auth = Auth::read(self.conf.auth_conf_file.as_deref())?;
        let mut failed = ServiceError::NoMap;
        for server in self.servers()? {
            let found =
                self.connection(server.as_deref(), &auth).and_then(|connection| self.find(connection));
            match found {
                Ok(open) => return Ok(open),
                Err(error) => {
                    let shown = server.as_deref().unwrap_or("the server of ldap.conf");
                    tracing::debug!("map {}: {shown}: {error}", self.place.map);
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    /// URIs; `None` stands for what `ldap.conf` says.
    fn servers(&self) -> Result<Vec<Option<String>>, ServiceError> {
        let mut all = Vec::new();
        for uri in &self.place.servers {
            match place::domain(uri) {
                Some((scheme, dn)) => {
                    let hosts = crate::sys::ldap::servers_of(dn)?;
                    all.extend(hosts.into_iter().map(|host| Some(format!("{scheme}://{host}"))));
                }
                None => all.push(Some(uri.clone())),
            }
        }
        Ok(if all.is_empty() { vec![None] } else { all })
    }

    /// Connected, encrypted and logged in, as the configuration wants it.
    fn connection(&self, server: Option<&str>, auth: &Auth) -> Result<Connection, ServiceError> {
        let secure = server.is_some_and(|uri| uri.starts_with("ldaps:"));
        let connect = || -> Result<Connection, LdapError> {
            let mut connection = Connection::new(server, self.network_limit, self.limit)?;
            if let Some(certificate) = &auth.certificate {
                connection.set_certificate(certificate)?;
            }
            Ok(connection)
        };
        let mut connection = connect()?;
        if auth.tls != Tls::Off && !secure {
            match (connection.start_tls(), auth.tls) {
                (Ok(()), _) => {}
                (Err(error), Tls::Required) => return Err(error.into()),
                (Err(error), _) => {
                    tracing::debug!("going on without TLS: {error}");
                    // What is half encrypted cannot be used.
                    connection = connect()?;
                }
            }
        }
        match &auth.bind {
            Bind::Anonymous => {}
            Bind::Simple => connection.bind_simple(&auth.login.user, &auth.login.secret)?,
            Bind::Sasl(mechanism) => bind_sasl(&mut connection, mechanism, auth)?,
            Bind::Best => {
                if let Some(mechanism) = self.best_mechanism(&mut connection, auth)? {
                    bind_sasl(&mut connection, mechanism, auth)?;
                }
            }
        }
        Ok(connection)
    }

    fn best_mechanism(
        &self,
        connection: &mut Connection,
        auth: &Auth,
    ) -> Result<Option<&'static str>, LdapError> {
        const ATTRIBUTE: &str = "supportedSASLMechanisms";
        let found = connection.search(Some(""), Scope::Base, "(objectClass=*)", &[ATTRIBUTE], self.limit)?;
        let offered: Vec<&[u8]> =
            found.iter().flat_map(|root| root.values(ATTRIBUTE)).map(Vec::as_slice).collect();
        Ok(best(&offered, auth))
    }

    /// The map's distinguished name there, and how it is written.
    fn find(&self, mut connection: Connection) -> Result<Open, ServiceError> {
        let candidates = Schema::candidates(self.conf.schema.as_ref());
        let attributes = map_attributes(&candidates);
        let (bases, scope, filter, name) = if self.place.is_dn() {
            (vec![Some(self.place.map.as_str())], Scope::Base, "(objectClass=*)".to_owned(), None)
        } else {
            let bases = match self.conf.search_bases.as_slice() {
                // The base of ldap.conf.
                [] => vec![None],
                bases => bases.iter().map(|base| Some(base.as_str())).collect(),
            };
            let name = self.place.map.as_str();
            (bases, Scope::Subtree, map_filter(&candidates, name), Some(name))
        };
        for base in bases {
            let found = match connection.search(base, scope, &filter, &attributes, self.limit) {
                Err(error) if error.code() == Some(NO_SUCH_OBJECT) => continue,
                found => found?,
            };
            for map in found {
                if let Some(schema) = schema_of(&map, &candidates, name) {
                    let schema = schema.clone();
                    return Ok(Open { connection, dn: map.dn, schema });
                }
            }
        }
        Err(ServiceError::NoMap)
    }
}

fn bind_sasl(connection: &mut Connection, mechanism: &str, auth: &Auth) -> Result<(), ServiceError> {
    if mechanism == "GSSAPI" {
        ticket::prepare(auth)?;
    }
    Ok(connection.bind_sasl(mechanism, &auth.login)?)
}

/// The best mechanism that a server offers and that there is something to log in with.
fn best(offered: &[&[u8]], auth: &Auth) -> Option<&'static str> {
    const WITH_PASSWORD: [&str; 5] = ["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1", "DIGEST-MD5", "PLAIN"];
    let has = |name: &&str| offered.iter().any(|offer| offer.eq_ignore_ascii_case(name.as_bytes()));
    let ticket = auth.client_principal.is_some() || auth.credential_cache.is_some();
    let password = !auth.login.user.is_empty() && !auth.login.secret.is_empty();
    let external = auth.certificate.is_some().then_some("EXTERNAL");
    let names = external
        .into_iter()
        .chain(ticket.then_some("GSSAPI"))
        // A password in clear text only where nobody else can read it.
        .chain(
            WITH_PASSWORD
                .into_iter()
                .filter(|name| password && (*name != "PLAIN" || auth.tls == Tls::Required)),
        );
    names.into_iter().find(has)
}

/// The text of an entry; of several values all, one after the other.
fn text(entry: &Entry, schema: &Schema) -> Vec<u8> {
    entry.values(&schema.value_attribute).join(&b' ')
}

impl Client for LdapClient {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ServiceError> {
        let (found, schema) = self.search(|schema| schema.filter(key))?;
        // The case of keys matters here, but not to the directory.
        let is = |entry: &&Entry| {
            let mut keys = entry.values(&schema.entry_attribute).iter();
            keys.any(|known| known == key || key == b"*" && known == b"/")
        };
        Ok(found.iter().find(is).map(|entry| text(entry, &schema)))
    }

    fn list(&mut self) -> Result<Option<Vec<KeyValue>>, ServiceError> {
        let (found, schema) = self.search(Schema::all)?;
        let pairs = found.iter().flat_map(|entry| {
            let keys = entry.values(&schema.entry_attribute).iter();
            keys.map(|key| (if key == b"/" { b"*".to_vec() } else { key.clone() }, text(entry, &schema)))
        });
        Ok(Some(pairs.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ldap::Login;

    #[test]
    fn the_best_mechanism() {
        let offered: [&[u8]; 4] = [b"PLAIN", b"DIGEST-MD5", b"GSSAPI", b"SCRAM-SHA-256"];
        let nobody = Auth::default();
        assert_eq!(best(&offered, &nobody), None);
        let login = Login { user: "a".into(), secret: "b".into() };
        let password = Auth { login, ..Auth::default() };
        assert_eq!(best(&offered, &password), Some("SCRAM-SHA-256"));
        assert_eq!(best(&offered[..1], &password), None, "no password in clear text");
        assert_eq!(best(&offered[..1], &Auth { tls: Tls::Required, ..password }), Some("PLAIN"));
        let ticket = Auth { client_principal: Some("a@X".into()), ..Auth::default() };
        assert_eq!(best(&offered, &ticket), Some("GSSAPI"));
    }

    #[test]
    fn a_question_takes_less_than_a_lookup_may() {
        let place = |servers| Place { servers: vec![String::new(); servers], map: String::new() };
        assert_eq!(limit(&place(0), &conf::Ldap::default()), Duration::from_secs(16));
        assert_eq!(limit(&place(9), &conf::Ldap::default()), LIMIT_MAX);
    }
}
