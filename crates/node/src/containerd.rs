//! Edits containerd's configuration, and reverts the edit: text in, text out.
//!
//! Pure: it knows neither files nor containerd. Comments, order and everything that is not Vellum's
//! stay byte for byte. What it does not understand it refuses, with a hint: a node whose containerd
//! does not start is worse than one without Vellum.
//!
//! [`Wanted`] lists the settings; [`apply`] sets them. [`revert`] removes them from a text that
//! others may have changed since: it looks up each setting's old value in the text before the edit.
//! containerd 1.x replaces a whole `plugins` section with an imported file's, 2.x merges them: so
//! only configurations of version 3 and later are extended by a file of our own ([`drop_in`]).
//!
//! Between install and uninstall `containerd config migrate` may have rewritten the configuration:
//! in a later version, including the settings of imported files ([`takes_over`]), and without
//! comments.

use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use vellum_service::error::{Error, Result};

/// The name of the snapshotter.
pub const SNAPSHOTTER: &str = "vellum";
/// The name of the differ.
pub const DIFFER: &str = "vellum-diff";
/// containerd's built-in differ.
const BUILT_IN_DIFFER: &str = "walking";
/// containerd's built-in snapshotter, which is the default.
const BUILT_IN_SNAPSHOTTER: &str = "overlayfs";

const TRANSFER: [&str; 3] = [
    "plugins",
    "io.containerd.transfer.v1.local",
    "unpack_config",
];
const DIFF_ORDER: [&str; 3] = [
    "plugins",
    "io.containerd.service.v1.diff-service",
    "default",
];

/// The version of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// containerd 1.x; 2.x reads it too.
    Two,
    /// containerd 2.0 to 2.3; later ones read it too.
    Three,
    /// containerd 2.4. It moves `grpc`, `ttrpc`, `debug` and `metrics` below `plugins`; the edited
    /// settings are where version 3 has them.
    Four,
    /// Written by a containerd that is newer than this program. Every change so far left most
    /// sections where they were, so it is edited like version 4, and
    /// [`ContainerdConfig::is_unknown_to_us`] lets the caller report it.
    Later(i64),
}

impl Version {
    /// Tells whether plugins have the names of containerd 2.
    fn has_names_of_2(self) -> bool {
        self != Self::Two
    }
}

/// What a node's containerd uses Vellum for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Wanted {
    /// The socket on which the server listens.
    pub socket: String,
    /// The store's directory; containerd tells the kubelet to watch its disk space. `None`: it is
    /// not set.
    #[serde(default)]
    pub root: Option<String>,
    /// Whether the kubelet's images and containers use it.
    pub cri: bool,
    /// Whether Vellum unpacks and diffs too. `None`: if the configuration's version shows that
    /// containerd supports it.
    pub differ: Option<bool>,
    /// Whether a configured snapshotter other than containerd's built-in one may be replaced.
    pub replace: bool,
}

/// A configuration that can be edited.
#[derive(Debug)]
pub struct ContainerdConfig {
    document: DocumentMut,
    /// Its version.
    pub version: Version,
}

impl ContainerdConfig {
    /// Tells whether it imports files that silently replace whole sections of it, ours too, as
    /// containerd 1.x does.
    pub fn may_be_overruled(&self) -> bool {
        let imports = self.document.get("imports").and_then(Item::as_array);
        self.version == Version::Two && imports.is_some_and(|list| !list.is_empty())
    }

    /// Returns the version if it is later than those that this program knows.
    pub fn is_unknown_to_us(&self) -> Option<i64> {
        match self.version {
            Version::Later(number) => Some(number),
            Version::Two | Version::Three | Version::Four => None,
        }
    }

    /// Tells whether the kubelet's interface is disabled, as in Docker's packages of containerd.
    pub fn disables_cri(&self) -> bool {
        let disabled = self
            .document
            .get("disabled_plugins")
            .and_then(Item::as_array);
        disabled.is_some_and(|list| {
            list.iter().filter_map(Value::as_str).any(|name| {
                name == "cri"
                    || name.starts_with("io.containerd.grpc.v1.cri")
                    || name.starts_with("io.containerd.cri.v1.")
            })
        })
    }
}

/// Parses a configuration. An empty one counts as missing and gets version 2, which every
/// containerd since 1.3 reads.
///
/// Errors: `Invalid`, for templates, text that is not TOML, version 1, and a version that is not a
/// number.
pub fn parse(text: &str, path: &Path) -> Result<ContainerdConfig> {
    let named = path.display();
    if text.contains("{{") {
        return Err(refused(
            format!("{named} is another program's template"),
            "add the lines of contrib/containerd/config-v3.toml (or v2) to the template, and use --no-containerd here",
        ));
    }
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| {
        let what = format!("{named} is not TOML: {}", e.message());
        refused(
            what,
            "containerd can't start with it either; repair it first",
        )
    })?;
    let version = match document.get("version").map(Item::as_integer) {
        Some(Some(2)) => Version::Two,
        Some(Some(3)) => Version::Three,
        Some(Some(4)) => Version::Four,
        Some(Some(later @ 5..)) => Version::Later(later),
        None if document.is_empty() => {
            document.insert("version", toml_edit::value(2));
            Version::Two
        }
        None | Some(Some(0 | 1)) => {
            return Err(refused(
                format!("{named} has version 1, which names plugins differently"),
                "`containerd config migrate` of containerd 2 converts it; if it has only disabled_plugins, put `version = 2` on its first line",
            ));
        }
        Some(other) => {
            let said = other.map_or("is not a number".to_owned(), |v| format!("is {v}"));
            return Err(refused(
                format!("the version of {named} {said}"),
                "containerd can't start with it either; repair it first",
            ));
        }
    };
    Ok(ContainerdConfig { document, version })
}

/// Returns the directory of the first import that matches every `.toml` file in one, if this
/// configuration can be extended there.
pub fn imported_dir(found: &ContainerdConfig) -> Option<PathBuf> {
    if !found.version.has_names_of_2() {
        return None;
    }
    let imports = found.document.get("imports")?.as_array()?;
    imports.iter().filter_map(Value::as_str).find_map(|import| {
        let path = Path::new(import);
        (path.is_absolute() && path.file_name()? == "*.toml")
            .then(|| path.parent().map(Into::into))?
    })
}

/// Returns the text with all wanted settings. Unchanged, if it has them already.
///
/// Errors: `Invalid` if another snapshotter is configured and may not be replaced, or a setting has
/// the wrong type.
pub fn apply(text: &str, path: &Path, wanted: &Wanted) -> Result<String> {
    let mut found = parse(text, path)?;
    check(&found, path, wanted)?;
    set_all(&mut found, wanted, path)?;
    Ok(found.document.to_string())
}

/// Returns a file with only the wanted settings, to be imported by the configuration `text`.
///
/// It has version 3 whatever the version of `text`: containerd reads each file by the file's own
/// version and migrates it, also to a version that this program doesn't know.
pub fn drop_in(text: &str, path: &Path, wanted: &Wanted) -> Result<String> {
    let found = parse(text, path)?;
    check(&found, path, wanted)?;
    let mut own = ContainerdConfig {
        document: DocumentMut::new(),
        version: found.version,
    };
    own.document.insert("version", toml_edit::value(3));
    set_all(&mut own, wanted, path)?;
    // containerd merges lists: where the importing file has one, the built-in snapshotter is in it
    // if it is wanted.
    if get(&found.document, &TRANSFER).is_some()
        && let Some(list) =
            get_mut(&mut own.document, &TRANSFER).and_then(Item::as_array_of_tables_mut)
    {
        list.retain(names_us);
    }
    Ok(format!(
        "# Written by `vellum node install`; `vellum node uninstall` removes it.\n{}",
        own.document
    ))
}

/// Returns `text` without the settings of [`apply`], as far as they are unchanged; `before` is the
/// text to which it was applied.
///
/// Errors: `Invalid` if one of the two is not a configuration any more.
pub fn revert(text: &str, before: &str, path: &Path, wanted: &Wanted) -> Result<String> {
    let mut found = parse(text, path)?;
    let ContainerdConfig {
        document: old,
        version: old_version,
    } = parse(before, path)?;
    // The earlier setting may have another name in a configuration that `containerd config migrate`
    // has rewritten since.
    let cri = cri_keys(found.version);
    for (keys, value) in settings(found.version, wanted) {
        let is_ours = get(&found.document, &keys).is_some_and(|item| same(item, &value));
        if !is_ours {
            continue;
        }
        match (keys == cri).then(|| get(&old, &cri_keys(old_version))) {
            Some(Some(was)) => {
                if let Some(item) = get_mut(&mut found.document, &keys) {
                    *item = was.clone();
                }
            }
            _ => put_back(&mut found.document, &old, &keys),
        }
    }
    if uses_differ(found.version, wanted) {
        take_from_order(&mut found.document, &old);
        take_from_transfer(&mut found.document, &old);
    }
    Ok(found.document.to_string())
}

/// Returns `text`, which imports a file of ours, without its own settings of Vellum; `None` if it
/// has none. `containerd config migrate` copies the settings of imported files into the
/// configuration.
pub fn takes_over(text: &str, path: &Path, wanted: &Wanted) -> Result<Option<String>> {
    let found = parse(text, path)?;
    let keys = ["proxy_plugins", SNAPSHOTTER, "address"];
    if !get(&found.document, &keys).is_some_and(|item| same(item, &wanted.socket)) {
        return Ok(None);
    }
    revert(text, "", path, wanted).map(Some)
}

/// Tells whether the text has all wanted settings.
pub fn is_applied(text: &str, path: &Path, wanted: &Wanted) -> bool {
    apply(text, path, wanted).is_ok_and(|applied| applied == text)
}

fn refused(what: String, hint: &str) -> Error {
    Error::Invalid {
        what,
        hint: Some(hint.to_owned()),
    }
}

fn uses_differ(version: Version, wanted: &Wanted) -> bool {
    wanted.differ.unwrap_or(version.has_names_of_2())
}

fn cri_keys(version: Version) -> Vec<&'static str> {
    match version.has_names_of_2() {
        true => vec!["plugins", "io.containerd.cri.v1.images", "snapshotter"],
        false => vec![
            "plugins",
            "io.containerd.grpc.v1.cri",
            "containerd",
            "snapshotter",
        ],
    }
}

/// Settings with a single value; lists in which others have entries are not included.
fn settings(version: Version, wanted: &Wanted) -> Vec<(Vec<&'static str>, String)> {
    let socket = wanted.socket.clone();
    let mut all = vec![
        (
            vec!["proxy_plugins", SNAPSHOTTER, "type"],
            "snapshot".to_owned(),
        ),
        (
            vec!["proxy_plugins", SNAPSHOTTER, "address"],
            socket.clone(),
        ),
    ];
    if let Some(root) = &wanted.root {
        // containerd 1.6 doesn't know it, and ignores it.
        all.push((
            vec!["proxy_plugins", SNAPSHOTTER, "exports", "root"],
            root.clone(),
        ));
    }
    if uses_differ(version, wanted) {
        all.push((vec!["proxy_plugins", DIFFER, "type"], "diff".to_owned()));
        all.push((vec!["proxy_plugins", DIFFER, "address"], socket));
    }
    if wanted.cri {
        all.push((cri_keys(version), SNAPSHOTTER.to_owned()));
    }
    all
}

/// Refuses where the administrator has decided otherwise.
fn check(found: &ContainerdConfig, path: &Path, wanted: &Wanted) -> Result<()> {
    if wanted.replace {
        return Ok(());
    }
    let named = path.display();
    for (keys, value) in settings(found.version, wanted) {
        let Some(item) = get(&found.document, &keys) else {
            continue;
        };
        let free = same(item, &value)
            || keys.last() == Some(&"snapshotter")
                && matches!(item.as_str(), Some("" | BUILT_IN_SNAPSHOTTER));
        if !free {
            let said = item.to_string();
            return Err(refused(
                format!("{named} already has {} = {}", keys.join("."), said.trim()),
                "use --replace to replace it (uninstall restores it), or --no-cri to leave the kubelet's snapshotter alone",
            ));
        }
    }
    Ok(())
}

fn set_all(found: &mut ContainerdConfig, wanted: &Wanted, path: &Path) -> Result<()> {
    for (keys, value) in settings(found.version, wanted) {
        set(&mut found.document, &keys, value.into(), path)?;
    }
    if uses_differ(found.version, wanted) {
        add_to_order(&mut found.document, path)?;
        add_to_transfer(&mut found.document, path)?;
    }
    Ok(())
}

fn same(item: &Item, value: &str) -> bool {
    item.as_str() == Some(value)
}

fn get<'a>(document: &'a DocumentMut, keys: &[&str]) -> Option<&'a Item> {
    let mut item = document.as_item();
    for key in keys {
        item = item.as_table_like()?.get(key)?;
    }
    Some(item)
}

fn get_mut<'a>(document: &'a mut DocumentMut, keys: &[&str]) -> Option<&'a mut Item> {
    let mut item = document.as_item_mut();
    for key in keys {
        item = item.as_table_like_mut()?.get_mut(key)?;
    }
    Some(item)
}

/// Returns the table at `keys`; creates missing ones.
fn table<'a>(
    document: &'a mut DocumentMut,
    keys: &[&str],
    path: &Path,
) -> Result<&'a mut dyn TableLike> {
    let mut at: &mut dyn TableLike = document.as_table_mut();
    for (depth, key) in keys.iter().enumerate() {
        let made = || {
            let mut made = Table::new();
            // Only the last one gets a header of its own.
            made.set_implicit(depth + 1 < keys.len());
            Item::Table(made)
        };
        let item = at.entry(key).or_insert_with(made);
        at = item.as_table_like_mut().ok_or_else(|| {
            let what = format!(
                "{} in {} is not a table",
                keys[..=depth].join("."),
                path.display()
            );
            refused(
                what,
                "containerd can't start with it either; repair it first",
            )
        })?;
    }
    Ok(at)
}

/// Sets one value; comments around it stay.
fn set(document: &mut DocumentMut, keys: &[&str], mut value: Value, path: &Path) -> Result<()> {
    let Some((last, above)) = keys.split_last() else {
        return Ok(());
    };
    let table = table(document, above, path)?;
    if let Some(old) = table.get(last).and_then(Item::as_value) {
        if same_value(old, &value) {
            return Ok(());
        }
        *value.decor_mut() = old.decor().clone();
    }
    match table.get_mut(last) {
        Some(item) => *item = Item::Value(value),
        None => {
            table.insert(last, Item::Value(value));
        }
    }
    Ok(())
}

fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        _ => false,
    }
}

/// Gives `keys` its value in `old`, or removes it, together with tables that become empty and were
/// not there.
fn put_back(document: &mut DocumentMut, old: &DocumentMut, keys: &[&str]) {
    if let (Some(item), Some(was)) = (get_mut(document, keys), get(old, keys)) {
        *item = was.clone();
        return;
    }
    for end in (1..=keys.len()).rev() {
        let (above, last) = (&keys[..end - 1], keys[end - 1]);
        if get(old, &keys[..end]).is_some() {
            return;
        }
        // `containerd config migrate` writes every key that a table can have, even those without a
        // value.
        let empty = end == keys.len()
            || get(document, &keys[..end])
                .and_then(Item::as_table_like)
                .is_some_and(|table| table.iter().all(|(_, item)| says_nothing(item)));
        let Some(table) = get_mut(document, above).and_then(Item::as_table_like_mut) else {
            return;
        };
        if !empty {
            return;
        }
        table.remove(last);
    }
}

fn says_nothing(item: &Item) -> bool {
    let is_empty_text = item.as_str().is_some_and(str::is_empty);
    let is_empty_list = item.as_array().is_some_and(Array::is_empty);
    let is_empty_table = item
        .as_table_like()
        .is_some_and(|table| table.iter().all(|(_, item)| says_nothing(item)));
    is_empty_text || is_empty_list || is_empty_table
}

/// Vellum's differ comes first; what it can't do goes to the differs after it.
fn add_to_order(document: &mut DocumentMut, path: &Path) -> Result<()> {
    let Some(item) = get_mut(document, &DIFF_ORDER) else {
        let order: Array = [DIFFER, BUILT_IN_DIFFER].into_iter().collect();
        return set(document, &DIFF_ORDER, order.into(), path);
    };
    let order = item.as_array_mut().ok_or_else(|| {
        let what = format!(
            "{} in {} is not a list",
            DIFF_ORDER.join("."),
            path.display()
        );
        refused(
            what,
            "containerd can't start with it either; repair it first",
        )
    })?;
    if !order.iter().any(|name| name.as_str() == Some(DIFFER)) {
        order.insert(0, DIFFER);
        if let Some(second) = order.get_mut(1)
            && second
                .decor()
                .prefix()
                .is_none_or(|p| p.as_str() == Some(""))
        {
            second.decor_mut().set_prefix(" ");
        }
    }
    Ok(())
}

fn take_from_order(document: &mut DocumentMut, old: &DocumentMut) {
    let Some(order) = get_mut(document, &DIFF_ORDER).and_then(Item::as_array_mut) else {
        return;
    };
    order.retain(|name| name.as_str() != Some(DIFFER));
    let only_built_in = order
        .iter()
        .all(|name| name.as_str() == Some(BUILT_IN_DIFFER));
    if get(old, &DIFF_ORDER).is_some() {
        if let Some(first) = order.get_mut(0) {
            // The space between it and what came before it.
            first.decor_mut().set_prefix("");
        }
    } else if only_built_in {
        put_back(document, old, &DIFF_ORDER);
    }
}

fn entry(snapshotter: &str, differ: &str) -> [(&'static str, String); 3] {
    [
        ("platform", "linux".to_owned()),
        ("snapshotter", snapshotter.to_owned()),
        ("differ", differ.to_owned()),
    ]
}

fn names_us(table: &Table) -> bool {
    table.get("snapshotter").and_then(Item::as_str) == Some(SNAPSHOTTER)
}

fn add_to_transfer(document: &mut DocumentMut, path: &Path) -> Result<()> {
    let as_table = |entry: [(&str, String); 3]| -> Table {
        entry
            .into_iter()
            .map(|(k, v)| (k, Value::from(v)))
            .collect()
    };
    let ours = entry(SNAPSHOTTER, DIFFER);
    match get_mut(document, &TRANSFER) {
        // A given list replaces the built-in one, so it must have the built-in one's entries.
        None => {
            let mut list = ArrayOfTables::new();
            list.push(as_table(ours));
            list.push(as_table(entry(BUILT_IN_SNAPSHOTTER, BUILT_IN_DIFFER)));
            let (last, above) = (TRANSFER[2], &TRANSFER[..2]);
            let table = table(document, above, path)?;
            table.insert(last, Item::ArrayOfTables(list));
            // It would leave an empty header of its own.
            if let Some(Item::Table(section)) = get_mut(document, above)
                && section.len() == 1
            {
                section.set_implicit(true);
            }
        }
        Some(Item::ArrayOfTables(list)) => {
            if !list.iter().any(names_us) {
                list.push(as_table(ours));
            }
        }
        Some(Item::Value(Value::Array(list))) => {
            let is_ours = |v: &Value| {
                let name = v.as_inline_table().and_then(|t| t.get("snapshotter"));
                name.and_then(Value::as_str) == Some(SNAPSHOTTER)
            };
            if !list.iter().any(is_ours) {
                let ours: InlineTable = ours.into_iter().collect();
                list.push(ours);
            }
        }
        Some(_) => {
            let what = format!("{} in {} is not a list", TRANSFER.join("."), path.display());
            let hint = "containerd can't start with it either; repair it first";
            return Err(refused(what, hint));
        }
    }
    Ok(())
}

fn take_from_transfer(document: &mut DocumentMut, old: &DocumentMut) {
    match get_mut(document, &TRANSFER) {
        Some(Item::ArrayOfTables(list)) => {
            list.retain(|table| !names_us(table));
            let only_built_in = list.iter().all(|table| {
                table.get("snapshotter").and_then(Item::as_str) == Some(BUILT_IN_SNAPSHOTTER)
            });
            if get(old, &TRANSFER).is_none() && only_built_in {
                put_back(document, old, &TRANSFER);
            }
        }
        Some(Item::Value(Value::Array(list))) => list.retain(|v| {
            let name = v.as_inline_table().and_then(|t| t.get("snapshotter"));
            name.and_then(Value::as_str) != Some(SNAPSHOTTER)
        }),
        _ => {}
    }
}
