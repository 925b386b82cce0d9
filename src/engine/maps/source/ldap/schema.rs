//! How directories write maps, and what to search for.

use crate::engine::maps::conf::Schema;
use crate::sys::ldap::Entry;

/// The ways in use: map class, its name; entry class, its key, its text. The first that fits counts.
const KNOWN: [[&str; 5]; 4] = [
    ["nisMap", "nisMapName", "nisObject", "cn", "nisMapEntry"],
    ["automountMap", "ou", "automount", "cn", "automountInformation"],
    ["automountMap", "automountMapName", "automount", "automountKey", "automountInformation"],
    ["amdmap", "amdmapName", "amdmap", "amdmapKey", "amdmapValue"],
];

impl Schema {
    fn known([map_class, map_attribute, entry_class, entry_attribute, value_attribute]: [&str; 5]) -> Self {
        Self {
            map_class: map_class.into(),
            entry_class: entry_class.into(),
            map_attribute: map_attribute.into(),
            entry_attribute: entry_attribute.into(),
            value_attribute: value_attribute.into(),
        }
    }

    /// Those to be tried: the configured one, else all that are known.
    pub fn candidates(configured: Option<&Self>) -> Vec<Self> {
        configured.map_or_else(|| KNOWN.map(Self::known).to_vec(), |schema| vec![schema.clone()])
    }

    /// Finds an entry by its key. `*` is the wildcard, which directories write as `/`, too.
    pub fn filter(&self, key: &[u8]) -> String {
        let Self { entry_class, entry_attribute, .. } = self;
        let key = escape(key);
        let other = if key == "\\2a" { format!("({entry_attribute}=/)") } else { String::new() };
        format!("(&(objectClass={entry_class})(|({entry_attribute}={key}){other}))")
    }

    /// Finds all entries.
    pub fn all(&self) -> String {
        format!("(&(objectClass={})({}=*))", self.entry_class, self.entry_attribute)
    }
}

/// Finds a map by its name, in whatever way it is written.
pub fn map_filter(candidates: &[Schema], name: &str) -> String {
    let name = escape(name.as_bytes());
    let one =
        |schema: &Schema| format!("(&(objectClass={})({}={name}))", schema.map_class, schema.map_attribute);
    format!("(|{})", candidates.iter().map(one).collect::<String>())
}

/// Attributes that say in which way a map is written.
pub fn map_attributes(candidates: &[Schema]) -> Vec<&str> {
    let mut names = vec!["objectClass"];
    names.extend(candidates.iter().map(|schema| schema.map_attribute.as_str()));
    names
}

/// The way in which a map is written: with this name, or whatever its name is.
pub fn schema_of<'a>(map: &Entry, candidates: &'a [Schema], name: Option<&str>) -> Option<&'a Schema> {
    let is = |value: &[u8], text: &str| value.eq_ignore_ascii_case(text.as_bytes());
    candidates.iter().find(|schema| {
        let mut names = map.values(&schema.map_attribute).iter();
        map.values("objectClass").iter().any(|class| is(class, &schema.map_class))
            && names.any(|known| name.is_none_or(|name| is(known, name)))
    })
}

/// As text in a filter.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'*' | b'(' | b')' | b'\\' | 0 | 128.. => text += &format!("\\{byte:02x}"),
            byte => text.push(char::from(*byte)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(attributes: &[(&str, &str)]) -> Entry {
        let attributes =
            attributes.iter().map(|(name, value)| ((*name).into(), vec![value.as_bytes().to_vec()]));
        Entry { dn: "dc=x".into(), attributes: attributes.collect() }
    }

    #[test]
    fn filters() {
        let schema = Schema::known(KNOWN[1]);
        assert_eq!(schema.filter(b"a(b"), "(&(objectClass=automount)(|(cn=a\\28b)))");
        assert_eq!(schema.filter(b"*"), "(&(objectClass=automount)(|(cn=\\2a)(cn=/)))");
        assert_eq!(schema.all(), "(&(objectClass=automount)(cn=*))");
        assert_eq!(escape("ä\\".as_bytes()), "\\c3\\a4\\5c");
        let own = Schema::candidates(Some(&schema));
        assert_eq!(map_filter(&own, "auto.a"), "(|(&(objectClass=automountMap)(ou=auto.a)))");
    }

    #[test]
    fn the_way_in_which_a_map_is_written() {
        let all = Schema::candidates(None);
        let key =
            |entry: &Entry, name| schema_of(entry, &all, name).map(|schema| schema.entry_attribute.as_str());
        let bis = map(&[("objectClass", "automountMap"), ("automountMapName", "auto.a")]);
        assert_eq!(key(&bis, Some("auto.a")), Some("automountKey"));
        assert_eq!(key(&bis, None), Some("automountKey"));
        assert_eq!(key(&bis, Some("auto.b")), None);
        let own = map(&[("objectclass", "AUTOMOUNTMAP"), ("ou", "auto.a")]);
        assert_eq!(key(&own, None), Some("cn"));
        let nis = map(&[("objectClass", "nisMap"), ("nisMapName", "auto.a")]);
        assert_eq!(schema_of(&nis, &all, None).unwrap().value_attribute, "nisMapEntry");
    }
}
