//! The edit of containerd's configuration: text in, text out, and back again.
//!
//! Pure: it knows neither files nor containerd. Comments, order and everything that is not Vellum's
//! stay byte for byte. What it does not understand it refuses, with a hint: a node whose containerd
//! does not start is worse than one without Vellum.
//!
//! [`Wanted`] lists what is to be set; [`apply`] sets it, [`revert`] takes it away from a text that
//! others may have changed since, by looking up in the text of before what each setting was.
//! containerd 1.x replaces a whole `plugins` section by an imported file's, 2.x joins them: only
//! configurations of version 3 and later are extended by a file of our own ([`drop_in`]).
//!
//! Between install and uninstall `containerd config migrate` may have written the configuration
//! anew: in a later version, with what imported files said in the configuration itself
//! ([`takes_over`]), and without comments.

use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use vellum_service::error::{Error, Result};

/// The name of the snapshotter.
pub const SNAPSHOTTER: &str = "vellum";
/// The name of the differ.
pub const DIFFER: &str = "vellum-diff";
/// The differ that containerd has built in.
const BUILT_IN_DIFFER: &str = "walking";
/// The snapshotter that containerd has built in and uses unless told otherwise.
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

/// The form of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// containerd 1.x; 2.x reads it too.
    Two,
    /// containerd 2.0 to 2.3; later ones read it too.
    Three,
    /// containerd 2.4. It moves `grpc`, `ttrpc`, `debug` and `metrics` below `plugins`; what is
    /// edited here is where version 3 has it.
    Four,
    /// What a containerd that came after this program writes. Every change so far left most
    /// sections where they were, so that the edit is that of version 4, and
    /// [`ContainerdConfig::is_unknown_to_us`] has it told.
    Later(i64),
}

impl Version {
    /// Whether plugins have the names of containerd 2.
    fn has_names_of_2(self) -> bool {
        self != Self::Two
    }
}

/// What a node's containerd is to use Vellum for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Wanted {
    /// Where the server listens.
    pub socket: String,
    /// The store's directory, which containerd tells the kubelet to watch the space of. `None`:
    /// nothing is said about it.
    #[serde(default)]
    pub root: Option<String>,
    /// Whether the kubelet's images and containers come to it.
    pub cri: bool,
    /// Whether Vellum unpacks and diffs, too. `None`: where the configuration's version says that
    /// containerd can.
    pub differ: Option<bool>,
    /// Whether another snapshotter than containerd's built-in may be replaced.
    pub replace: bool,
}

/// A configuration that can be edited.
#[derive(Debug)]
pub struct ContainerdConfig {
    document: DocumentMut,
    /// Its form.
    pub version: Version,
}

impl ContainerdConfig {
    /// Whether it imports files that replace whole sections of it, ours too, without a word:
    /// containerd 1.x does so.
    pub fn may_be_overruled(&self) -> bool {
        let imports = self.document.get("imports").and_then(Item::as_array);
        self.version == Version::Two && imports.is_some_and(|list| !list.is_empty())
    }

    /// The version, if it is later than those that this program was made for.
    pub fn is_unknown_to_us(&self) -> Option<i64> {
        match self.version {
            Version::Later(number) => Some(number),
            Version::Two | Version::Three | Version::Four => None,
        }
    }

    /// Whether the kubelet's interface is switched off, as Docker's packages of containerd have it.
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

/// Parses a configuration. An empty one is as good as none and gets version 2, which every
/// containerd since 1.3 reads.
///
/// Errors: `Invalid`, for templates, what is not TOML, version 1, and a version that is not a
/// number.
pub fn parse(text: &str, path: &Path) -> Result<ContainerdConfig> {
    let named = path.display();
    if text.contains("{{") {
        return Err(refused(
            format!("{named} is a template of another program"),
            "add the lines of contrib/containerd/config-v3.toml (or v2) to the template, and use --no-containerd here",
        ));
    }
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| {
        let what = format!("{named} is not TOML: {}", e.message());
        refused(
            what,
            "containerd would not start with it either; repair it first",
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
                format!("{named} has the form of version 1, whose names are others"),
                "`containerd config migrate` of containerd 2 writes it anew; if it has nothing but disabled_plugins, put `version = 2` on its first line",
            ));
        }
        Some(other) => {
            let said = other.map_or("is not a number".to_owned(), |v| format!("is {v}"));
            return Err(refused(
                format!("the version of {named} {said}"),
                "containerd would not start with it either; repair it first",
            ));
        }
    };
    Ok(ContainerdConfig { document, version })
}

/// Returns the directory of the first import that takes every `.toml` file of one, if this
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

/// Returns the text with everything that is wanted set. The same text, if it is.
///
/// Errors: `Invalid` if another snapshotter is configured and may not be replaced, or a setting has
/// a type it can't have.
pub fn apply(text: &str, path: &Path, wanted: &Wanted) -> Result<String> {
    let mut found = parse(text, path)?;
    check(&found, path, wanted)?;
    set_all(&mut found, wanted, path)?;
    Ok(found.document.to_string())
}

/// Returns a file that says only what is wanted, to be imported by the configuration `text`.
///
/// It has version 3 whatever the version of `text`: containerd reads each file by its own version
/// and brings it up to date, also one that this program doesn't know.
pub fn drop_in(text: &str, path: &Path, wanted: &Wanted) -> Result<String> {
    let found = parse(text, path)?;
    check(&found, path, wanted)?;
    let mut own = ContainerdConfig {
        document: DocumentMut::new(),
        version: found.version,
    };
    own.document.insert("version", toml_edit::value(3));
    set_all(&mut own, wanted, path)?;
    // containerd joins lists: where the importing file has one, the built-in snapshotter is in it
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

/// Returns `text` without what [`apply`] set, as far as it is still as it was set; `before` is the
/// text it was applied to.
///
/// Errors: `Invalid` if one of both is no configuration any more.
pub fn revert(text: &str, before: &str, path: &Path, wanted: &Wanted) -> Result<String> {
    let mut found = parse(text, path)?;
    let ContainerdConfig {
        document: old,
        version: old_version,
    } = parse(before, path)?;
    // What stood there before may have another name in a configuration that
    // `containerd config migrate` has written since.
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

/// Returns `text`, which imports a file of ours, without what it says of Vellum itself; `None` if
/// it says nothing of it. `containerd config migrate` writes what imported files say into the
/// configuration.
pub fn takes_over(text: &str, path: &Path, wanted: &Wanted) -> Result<Option<String>> {
    let found = parse(text, path)?;
    let keys = ["proxy_plugins", SNAPSHOTTER, "address"];
    if !get(&found.document, &keys).is_some_and(|item| same(item, &wanted.socket)) {
        return Ok(None);
    }
    revert(text, "", path, wanted).map(Some)
}

/// Returns whether the text says everything that is wanted.
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

/// Settings that have one value; lists that others have entries in are not among them.
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
        // containerd 1.6 doesn't know it, and does not mind.
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

/// Refuses where somebody decided otherwise.
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
                format!("{named} says {} = {} already", keys.join("."), said.trim()),
                "--replace takes its place (uninstall puts it back); --no-cri leaves the kubelet's snapshotter alone",
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

/// Returns the table at `keys`, making what is missing of it.
fn table<'a>(
    document: &'a mut DocumentMut,
    keys: &[&str],
    path: &Path,
) -> Result<&'a mut dyn TableLike> {
    let mut at: &mut dyn TableLike = document.as_table_mut();
    for (depth, key) in keys.iter().enumerate() {
        let made = || {
            let mut made = Table::new();
            // Only the last one gets a line of its own.
            made.set_implicit(depth + 1 < keys.len());
            Item::Table(made)
        };
        let item = at.entry(key).or_insert_with(made);
        at = item.as_table_like_mut().ok_or_else(|| {
            let what = format!(
                "{} in {} is no table",
                keys[..=depth].join("."),
                path.display()
            );
            refused(
                what,
                "containerd would not start with it either; repair it first",
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

/// Gives `keys` the value it has in `old`, or takes it away together with tables that are empty
/// then and were not there.
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
        // `containerd config migrate` writes every key that a table may have, those without a
        // value, too.
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

/// Vellum's differ is asked first; what it can't do goes to those that were asked before.
fn add_to_order(document: &mut DocumentMut, path: &Path) -> Result<()> {
    let Some(item) = get_mut(document, &DIFF_ORDER) else {
        let order: Array = [DIFFER, BUILT_IN_DIFFER].into_iter().collect();
        return set(document, &DIFF_ORDER, order.into(), path);
    };
    let order = item.as_array_mut().ok_or_else(|| {
        let what = format!("{} in {} is no list", DIFF_ORDER.join("."), path.display());
        refused(
            what,
            "containerd would not start with it either; repair it first",
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
            // The blank between it and what stood before it.
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
        // A list that is given replaces the built-in one, so what that has must be in it.
        None => {
            let mut list = ArrayOfTables::new();
            list.push(as_table(ours));
            list.push(as_table(entry(BUILT_IN_SNAPSHOTTER, BUILT_IN_DIFFER)));
            let (last, above) = (TRANSFER[2], &TRANSFER[..2]);
            let table = table(document, above, path)?;
            table.insert(last, Item::ArrayOfTables(list));
            // It would be an empty head of its own.
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
            let what = format!("{} in {} is no list", TRANSFER.join("."), path.display());
            let hint = "containerd would not start with it either; repair it first";
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
