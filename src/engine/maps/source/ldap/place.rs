//! Where an LDAP map is: servers, and the map's name or distinguished name.

use crate::engine::maps::conf::Ldap;

/// A map, and whom to ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// URIs of servers in order; none: those of `ldap.conf`. One with a distinguished name and no host stands for the servers
    /// of that domain.
    pub servers: Vec<String>,
    /// Name or distinguished name of the map.
    pub map: String,
}

impl Place {
    /// Of a map's name without its type: `auto.home`, `server:auto.home`, `//server/ou=auto.home,dc=example,dc=com` ...
    pub fn parse(name: &str, secure: bool, conf: &Ldap) -> Self {
        let scheme = if secure { "ldaps" } else { "ldap" };
        let (server, map) = match name.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or(("", rest)),
            None => server_and_map(name).unwrap_or(("", name)),
        };
        let servers = match server {
            // Of several ways to say that there is no server, one.
            "" if secure && conf.uris.is_empty() => vec!["ldaps://".to_owned()],
            "" => conf.uris.clone(),
            server => vec![format!("{scheme}://{server}")],
        };
        Self { servers, map: map.to_owned() }
    }

    /// Is the map named by its distinguished name?
    pub fn is_dn(&self) -> bool {
        self.map.contains('=')
    }
}

/// `SERVER[:PORT]:MAP`: the colon after the server is the last one that is not part of a distinguished name.
fn server_and_map(name: &str) -> Option<(&str, &str)> {
    let before_dn = &name[..name.find('=').unwrap_or(name.len())];
    let colon = before_dn.rfind(':')?;
    Some((&name[..colon], &name[colon + 1..]))
}

/// The distinguished name of a URI without a host, `ldap:///dc=example,dc=com`: its servers are in DNS.
pub fn domain(uri: &str) -> Option<(&str, &str)> {
    let (scheme, dn) = uri.split_once(":///")?;
    dn.contains('=').then_some((scheme, dn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> (String, String) {
        let conf = Ldap { uris: vec!["ldap://a".into(), "ldap://b".into()], ..Ldap::default() };
        let place = Place::parse(name, false, &conf);
        (place.servers.join(" "), place.map)
    }

    #[test]
    fn names_of_maps() {
        let usual = |map: &str| ("ldap://a ldap://b".to_owned(), map.to_owned());
        let at = |server: &str, map: &str| (format!("ldap://{server}"), map.to_owned());
        assert_eq!(parse("auto.home"), usual("auto.home"));
        assert_eq!(parse("ou=auto.home,dc=x"), usual("ou=auto.home,dc=x"));
        assert_eq!(parse("///ou=auto.home,dc=x"), usual("ou=auto.home,dc=x"));
        assert_eq!(parse("srv:auto.home"), at("srv", "auto.home"));
        assert_eq!(parse("srv:389:ou=auto.home,dc=x"), at("srv:389", "ou=auto.home,dc=x"));
        assert_eq!(parse("[::1]:auto.home"), at("[::1]", "auto.home"));
        assert_eq!(parse("//srv/auto.home"), at("srv", "auto.home"));
        assert_eq!(parse("//srv:1389/cn=a:b,dc=x"), at("srv:1389", "cn=a:b,dc=x"));
        assert_eq!(parse("cn=a:b,dc=x"), usual("cn=a:b,dc=x"));
    }

    #[test]
    fn with_tls() {
        let place = |name| Place::parse(name, true, &Ldap::default()).servers;
        assert_eq!(place("srv:auto.home"), ["ldaps://srv"]);
        assert_eq!(place("auto.home"), ["ldaps://"]);
        assert!(Place::parse("auto.home", false, &Ldap::default()).servers.is_empty());
    }

    #[test]
    fn servers_in_dns() {
        assert_eq!(domain("ldap:///dc=example,dc=com"), Some(("ldap", "dc=example,dc=com")));
        assert_eq!(domain("ldap://srv/dc=example"), None);
        assert_eq!(domain("ldapi:///"), None);
    }
}
