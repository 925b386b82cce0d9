//! `docs/compatibility.md` has every feature once, `docs/hardening.md` an attack on each line, and the tests that they name exist.

use std::collections::BTreeMap;
use std::path::Path;

/// How many features there are: F001 to F246.
const FEATURES: usize = 246;

const STATES: [&str; 4] = ["done", "differs", "not meant to be", "not yet"];

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|_| panic!("no {path}"))
}

/// The cells of each row, and its state.
fn rows(text: &str) -> Vec<(Vec<&str>, &str)> {
    text.lines()
        .filter(|line| line.starts_with("| F"))
        .map(|line| {
            let cells: Vec<&str> =
                line.split(" |").map(|cell| cell.trim_start_matches("| ").trim()).collect();
            let state = STATES.iter().find(|state| cells[2].starts_with(**state));
            (cells, *state.unwrap_or_else(|| panic!("no state: {line}")))
        })
        .collect()
}

/// Is there a test of this name? `FILE::NAME` in `tests/` or `src/`, or `scenario NAME`.
fn exists(test: &str, scenarios: &str) -> bool {
    if let Some(name) = test.strip_prefix("scenario ") {
        return scenarios.contains(&format!("name: \"{name}\""));
    }
    let Some((file, name)) = test.split_once("::") else { return false };
    let file = if file.starts_with("src/") { file.to_owned() } else { format!("tests/{file}") };
    let text = read(&file);
    let function = format!("fn {name}(");
    let case = format!("{name}:");
    text.lines().any(|line| line.trim_start().starts_with(&function) || line.trim_start().starts_with(&case))
}

#[test]
fn every_feature_once_and_every_test_there() {
    let text = read("docs/compatibility.md");
    let scenarios = read("tests/scenarios/src/main.rs");
    let rows = rows(&text);
    let ids: Vec<&str> = rows.iter().map(|(cells, _)| cells[0]).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    let expected: Vec<String> = (1..=FEATURES).map(|n| format!("F{n:03}")).collect();
    assert_eq!(sorted, expected);

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (cells, state) in &rows {
        *counts.entry(state).or_default() += 1;
        let [id, _, here, shown, ..] = cells.as_slice() else { panic!("{cells:?}") };
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(*state == "done" || here.len() > state.len() + 2, "{id}: {state} without a reason");
        assert!(*state != "done" || !tests.is_empty(), "{id}: done, but no test shows it");
        for test in tests {
            assert!(exists(test, &scenarios), "{id}: there is no {test}");
        }
    }
    for state in STATES {
        let count = counts.get(state).copied().unwrap_or(0);
        assert!(text.contains(&format!("{count} {state}")), "it is {count} {state}");
    }
}

#[test]
fn every_attack_has_its_test() {
    let text = read("docs/hardening.md");
    let (_, attacks) = text.split_once("\n## Attacks\n").unwrap();
    let rows = attacks.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attack |"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [attack, _, shown] = cells[..] else { panic!("{row}") };
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test:{attack}");
        for test in tests {
            assert!(exists(test, ""), "there is no {test}");
        }
        count += 1;
    }
    assert!(count > 40, "{count}");
}

/// The documents, from the root of the repository.
const DOCUMENTS: [&str; 3] = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"];

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|file| file.unwrap().path());
    let documents = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let mut count = 0;
    for document in documents.chain(DOCUMENTS.map(|name| root.join(name))) {
        let text = std::fs::read_to_string(&document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://") && !link.contains(' ')) {
            // `scripts/bench` writes it.
            let is_made = link.ends_with("benchmarks.md");
            assert!(is_made || document.with_file_name(link).exists(), "{}: {link}", document.display());
            count += 1;
        }
        // Scripts are named as they are called.
        for script in text
            .split("scripts/")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next())
        {
            assert!(
                script.is_empty() || root.join("scripts").join(script).exists(),
                "{}: scripts/{script}",
                document.display()
            );
        }
    }
    assert!(count > 20, "{count}");
}

/// Files that a document links to, or names in backticks, are there.
#[test]
fn documents_name_files_that_exist() {
    const FOLDERS: [&str; 7] = ["src/", "tests/", "docs/", "scripts/", "plugin/", "packaging/", "proto/"];
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(here.join("docs")).unwrap().map(|file| file.unwrap().path());
    let documents = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    for document in documents.chain(["README.md", "CONTRIBUTING.md"].map(|name| here.join(name))) {
        let text = std::fs::read_to_string(&document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
        let linked = links.map(|link| document.parent().unwrap().join(link));
        let code = text.split('`').skip(1).step_by(2).filter_map(|code| code.split([' ', ':', '\n']).next());
        let named = code.filter(|code| FOLDERS.iter().any(|folder| code.starts_with(folder)));
        for path in linked.chain(named.map(|name| here.join(name))) {
            assert!(path.exists(), "{}: {}", document.display(), path.display());
        }
    }
}
