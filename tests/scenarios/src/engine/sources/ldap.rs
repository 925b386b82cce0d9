//! A real slapd, with maps in all three ways of writing them.

use super::{Daemon, LIMIT, comes_up, daemon, explain, read};
use crate::check::{Checks, wait_until};
use crate::peers::is_autofs;
use crate::process::{Process, run, run_ok};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// More keys than a server gives at once.
const MANY: usize = 2500;

pub fn start() -> Result<Process> {
    fs::create_dir_all("/tmp/ldap/db")?;
    fs::write("/tmp/ldap/slapd.conf", include_str!("slapd.conf"))?;
    let mut maps = include_str!("maps.ldif").to_owned();
    for n in 0..MANY {
        write!(
            maps,
            "dn: automountKey=k{n},automountMapName=auto.many,dc=example,dc=com\nobjectClass: automount\n\
             automountKey: k{n}\nautomountInformation: :/srv/data/one\n\n"
        )?;
    }
    fs::write("/tmp/ldap/maps.ldif", maps)?;
    let request = "req -x509 -newkey rsa:2048 -nodes -keyout /tmp/ldap/key.pem -out /tmp/ldap/cert.pem -days 2 \
                   -subj /CN=lab -addext subjectAltName=DNS:lab,IP:127.0.0.1";
    run_ok(LIMIT, "openssl", &request.split_whitespace().collect::<Vec<_>>())?;
    fs::write(
        "/etc/ldap/ldap.conf",
        "BASE dc=example,dc=com\nURI ldap://127.0.0.1\nTLS_CACERT /tmp/ldap/cert.pem\n",
    )?;
    run_ok(LIMIT, "slapadd", &["-q", "-f", "/tmp/ldap/slapd.conf", "-l", "/tmp/ldap/maps.ldif"])?;
    serve()
}

/// slapd on what `start` made.
pub fn serve() -> Result<Process> {
    let slapd = daemon(
        "slapd",
        &["-d", "0", "-f", "/tmp/ldap/slapd.conf", "-h", "ldap://127.0.0.1 ldaps://127.0.0.1"],
    )?;
    let answers =
        || run(LIMIT, "ldapsearch", &["-x", "-LLL", "-s", "base"]).is_ok_and(|o| o.status.success());
    anyhow::ensure!(wait_until(answers), "slapd did not come up");
    Ok(slapd)
}

/// A Kerberos realm, with keys for the server and for the one who logs in.
pub fn realm() -> Result<Process> {
    fs::create_dir_all("/tmp/realm")?;
    fs::write(
        "/etc/krb5.conf",
        "[libdefaults]\ndefault_realm = LAB\ndns_lookup_kdc = false\nrdns = false\nignore_acceptor_hostname = true\n\
         [realms]\nLAB = {\nkdc = 127.0.0.1\n}\n[domain_realm]\nlab = LAB\nlocalhost = LAB\n",
    )?;
    fs::create_dir_all("/etc/krb5kdc")?;
    fs::write(
        "/etc/krb5kdc/kdc.conf",
        "[realms]\nLAB = {\ndatabase_name = /tmp/realm/principal\nkey_stash_file = /tmp/realm/stash\n}\n",
    )?;
    run_ok(LIMIT, "kdb5_util", &["create", "-s", "-P", "master"])?;
    for name in ["ldap/lab", "ldap/localhost", "reader"] {
        run_ok(LIMIT, "kadmin.local", &["-q", &format!("addprinc -randkey {name}")])?;
        run_ok(LIMIT, "kadmin.local", &["-q", &format!("ktadd -k /etc/krb5.keytab {name}")])?;
    }
    let kdc = daemon("krb5kdc", &["-n"])?;
    let ticket = || {
        run(LIMIT, "kinit", &["-k", "-c", "FILE:/tmp/realm/ticket", "reader"])
            .is_ok_and(|o| o.status.success())
    };
    anyhow::ensure!(wait_until(ticket), "krb5kdc did not come up");
    Ok(kdc)
}

/// What the engine mounts from it.
pub fn maps(checks: &mut Checks) -> Result<()> {
    for (what, path) in [
        ("RFC 2307bis, a key", "/bis/a/one"),
        ("RFC 2307bis, the wildcard", "/bis/two/two"),
        ("autofs' own way, a key", "/own/a/two"),
        ("autofs' own way, the wildcard", "/own/one/one"),
        ("NIS' way", "/nis/a/two"),
        ("by distinguished name, with TLS", "/tls/two/two"),
        ("a map that the master map in LDAP names", "/from/ldap/two/two"),
        ("a direct map", "/direct/ldap/one"),
        ("a key of many", "/browsed/k2499/one"),
    ] {
        let want = path.rsplit('/').next().unwrap_or_default();
        checks.equal(what, read(path)?, want.into());
    }
    checks.that("no key, no wildcard", read("/nis/nothing/x")?.contains("No such file"));
    checks.that("the case of a key matters", read("/nis/A/two")?.contains("No such file"));
    for (hosts, base, found) in [
        ("lab", "dc=example,dc=com", true),
        ("127.0.0.1:2, 127.0.0.1:389", "dc=example,dc=com", true),
        ("127.0.0.1:2", "dc=example,dc=com", false),
        ("lab", "dc=example,dc=org", false),
    ] {
        fs::write("/etc/auto.explained", "/amd ldap,amd:amd.links\n")?;
        fs::write("/tmp/amd.conf", format!("[ amd ]\nldap_hostports = {hosts}\nldap_base = {base}\n"))?;
        let told = run(
            LIMIT,
            "autofs-cr",
            &["explain", "--master", "/etc/auto.explained", "--conf", "/tmp/amd.conf", "/amd/two"],
        )?;
        let what = format!("an amd map, from {hosts} below {base}: {found}");
        checks.equal(&what, String::from_utf8_lossy(&told.stdout).contains("/srv/data/two"), found);
    }
    checks.equal("all keys of a map, in pages", fs::read_dir("/browsed")?.count(), MANY);
    Ok(())
}

fn auth(attributes: &str) -> Result<()> {
    let path = "/etc/autofs_ldap_auth.conf";
    fs::write(path, format!("<?xml version=\"1.0\" ?>\n<autofs_ldap_sasl_conf {attributes} />\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

/// A map that only who is logged in can see.
pub fn logins(checks: &mut Checks) -> Result<()> {
    fs::write("/etc/auto.explained", "/sec ldap:lab:auto.secret\n")?;
    let tls = "usetls=\"yes\" tlsrequired=\"yes\"";
    let reader = "user=\"reader\" secret=\"secret\"";
    let sasl = |mechanism: &str| format!("authrequired=\"yes\" authtype=\"{mechanism}\" {reader}");
    let dn = "authrequired=\"simple\" user=\"uid=reader,dc=example,dc=com\"";
    let certificate = "external_cert=\"/tmp/ldap/cert.pem\" external_key=\"/tmp/ldap/key.pem\"";
    let gssapi = "authrequired=\"yes\" authtype=\"GSSAPI\"";
    let found = "/srv/data/two";
    for (what, attributes, want) in [
        ("nobody", "authrequired=\"no\"".into(), "no such map"),
        ("a simple login", format!("{dn} secret=\"secret\""), found),
        ("in base64, with StartTLS", format!("{dn} encoded_secret=\"c2VjcmV0\" {tls}"), found),
        ("a wrong password", format!("{dn} secret=\"wrong\""), "Invalid credentials"),
        ("DIGEST-MD5", sasl("DIGEST-MD5"), found),
        ("SCRAM-SHA-256", sasl("SCRAM-SHA-256"), found),
        ("PLAIN with TLS", format!("{} {tls}", sasl("PLAIN")), found),
        ("EXTERNAL", format!("authrequired=\"yes\" authtype=\"EXTERNAL\" {certificate} {tls}"), found),
        ("GSSAPI, with the key of the host", format!("{gssapi} clientprinc=\"reader\""), found),
        ("GSSAPI, with a ticket", format!("{gssapi} credentialcache=\"FILE:/tmp/realm/ticket\""), found),
        (
            "GSSAPI, without a key",
            format!("{gssapi} clientprinc=\"nobody\""),
            "no Kerberos ticket for nobody",
        ),
        ("the best that there is", format!("authrequired=\"autodetect\" {reader}"), found),
        ("a mechanism that nobody has", sasl("X-NONE"), "logging in by SASL"),
    ] {
        auth(&attributes)?;
        let got = explain("/sec/a")?;
        checks.that(&format!("logging in: {what} ({got})"), got.contains(want));
    }
    // Kerberos takes its locks down when a program ends, whoever is still at work.
    auth(&format!("{gssapi} clientprinc=\"reader\""))?;
    checks.that(
        "a program that logged in by Kerberos ends well, each time",
        (0..50).all(|_| explain("/sec/a").is_ok()),
    );
    fs::set_permissions("/etc/autofs_ldap_auth.conf", fs::Permissions::from_mode(0o644))?;
    checks.that("a password that all can read is refused", explain("/sec/a")?.contains("chmod 600"));
    auth("authrequired=\"no\"")?;
    comes_up(checks, "slapd answers", "ldapsearch", &["-x", "-LLL", "-s", "base"]);
    Ok(())
}

/// A direct key that appears in the directory is served after HUP.
pub fn changes(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    let entry = "dn: automountKey=/direct/new,automountMapName=auto.direct,dc=example,dc=com\nobjectClass: automount\n\
                 automountKey: /direct/new\nautomountInformation: :/srv/data/two\n";
    fs::write("/tmp/ldap/new.ldif", entry)?;
    let admin = ["-x", "-D", "cn=admin,dc=example,dc=com", "-w", "admin", "-f", "/tmp/ldap/new.ldif"];
    run_ok(LIMIT, "ldapadd", &admin)?;
    engine.signal(Signal::SIGHUP)?;
    checks.soon("a new direct key in LDAP, after HUP", || is_autofs("/direct/new"));
    checks.equal("and its mount", read("/direct/new/two")?, "two".into());
    Ok(())
}
