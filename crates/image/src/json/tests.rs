use std::collections::BTreeMap;

use super::*;

#[derive(Clone, Debug, Default)]
struct Inner {
    k: String,
    n: i64,
}

fields!(Inner { "k" => k, "n" => n });

#[derive(Default)]
struct Outer {
    task: String,
    flag: bool,
    inner: Inner,
    maybe: Option<Inner>,
    list: List<String>,
    items: List<Inner>,
    map: BTreeMap<String, String>,
    set: BTreeMap<String, Empty>,
    words: Words,
    any: Any,
}

fields!(Outer {
    "Task" => task,
    "flag" => flag,
    "inner" => inner,
    "maybe" => maybe,
    "list" => list,
    "items" => items,
    "map" => map,
    "set" => set,
    "words" => words,
    "any" => any,
});

impl Outer {
    fn shown(self) -> String {
        let inner = |i: &Inner| format!("{}:{}", i.k, i.n);
        let parts = [
            ("Task", self.task),
            ("flag", if self.flag { "true" } else { "" }.to_owned()),
            ("inner", inner(&self.inner)),
            ("maybe", self.maybe.as_ref().map(inner).unwrap_or_default()),
            ("list", self.list.into_vec().join(",")),
            (
                "items",
                self.items
                    .into_vec()
                    .iter()
                    .map(inner)
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            ("map", format!("{:?}", self.map)),
            ("set", self.set.into_keys().collect::<Vec<_>>().join(",")),
            ("words", self.words.0.join(",")),
            ("any", if self.any.0 { "true" } else { "" }.to_owned()),
        ];
        let said = parts
            .into_iter()
            .filter(|(_, v)| !["", ":0", "{}"].contains(&v.as_str()));
        said.map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn said(text: &[u8]) -> String {
    match read::<Outer>(text) {
        Ok(outer) => outer.shown(),
        Err(e) => e.to_string(),
    }
}

#[track_caller]
fn check(text: &str, expect: &str) {
    assert_eq!(said(text.as_bytes()), expect, "{text}");
}

#[test]
fn names_are_compared_without_case() {
    check(r#"{"Task": "a"}"#, "Task=a");
    check(r#"{"task": "a"}"#, "Task=a");
    check("{\"ta\u{17f}\u{212a}\": \"a\"}", "Task=a");
    check(r#"{"\u0054ask": "a"}"#, "Task=a");
    check(r#"{"Task": "exact", "TASK": "later"}"#, "Task=later");
    check(r#"{"Tasks": "a", "Tas": "b", "": "c", "Tásk": "d"}"#, "");
}

#[test]
fn the_last_of_two_values_counts_and_is_merged() {
    check(r#"{"Task": "a", "Task": "b"}"#, "Task=b");
    check(
        r#"{"inner": {"k": "a", "n": 1}, "inner": {"n": 2}}"#,
        "inner=a:2",
    );
    check(
        r#"{"maybe": {"k": "a", "n": 1}, "maybe": {"n": 2}}"#,
        "maybe=a:2",
    );
    check(
        r#"{"map": {"a": "1", "b": "2"}, "map": {"b": "3"}}"#,
        r#"map={"a": "1", "b": "3"}"#,
    );
    check(
        r#"{"items": [{"k": "a", "n": 1}, {"k": "b"}], "items": [{"n": 2}]}"#,
        "items=a:2",
    );
    check(
        r#"{"list": ["a", "b"], "list": [null], "list": [null, null]}"#,
        "list=a,b",
    );
    check(
        r#"{"list": ["a", "b"], "list": [], "list": [null, null]}"#,
        "list=,",
    );
    check(r#"{"words": ["a", "b"], "words": [null]}"#, "");
}

#[test]
fn null_keeps_a_value_and_clears_an_optional_one() {
    check("null", "");
    check(r#"{"Task": "a", "Task": null}"#, "Task=a");
    check(r#"{"flag": true, "flag": null}"#, "flag=true");
    check(
        r#"{"inner": {"k": "a", "n": 1}, "inner": null}"#,
        "inner=a:1",
    );
    check(r#"{"maybe": {"k": "a"}, "maybe": null}"#, "");
    check(r#"{"list": ["a"], "list": null}"#, "");
    check(r#"{"map": {"a": "1"}, "map": null}"#, "");
    check(r#"{"map": {"a": null}}"#, r#"map={"a": ""}"#);
    check(r#"{"words": ["a"], "words": null}"#, "");
    check(r#"{"set": {"a": null, "b": {"x": [1]}}}"#, "set=a,b");
    check(r#"{"any": null}"#, "");
    check(r#"{"any": false}"#, "any=true");
}

#[test]
fn a_value_of_the_wrong_type_is_an_error_that_names_the_field() {
    for (text, expect) in [
        ("[]", "it is a list, not an object"),
        (r#"{"Task": 1}"#, "Task is a number, not a string"),
        (r#"{"TASK": {}}"#, "Task is an object, not a string"),
        (r#"{"flag": "true"}"#, "flag is a string, not true or false"),
        (
            r#"{"items": [{}, {"n": "1"}]}"#,
            "items[1].n is a string, not a whole number of 64 bits",
        ),
        (r#"{"list": [["a"]]}"#, "list[0] is a list, not a string"),
        (
            r#"{"map": {"a": true}}"#,
            "map.a is a boolean, not a string",
        ),
        (r#"{"set": {"a": "x"}}"#, "set.a is a string, not an object"),
        (r#"{"words": [1]}"#, "words[0] is a number, not a string"),
        (
            r#"{"words": 1}"#,
            "words is a number, not a string or a list of strings",
        ),
    ] {
        check(text, expect);
    }
}

#[test]
fn numbers_fit_or_are_errors() {
    for (text, expect) in [
        ("7", "inner=:7"),
        ("-0", ""),
        ("9223372036854775807", "inner=:9223372036854775807"),
        ("-9223372036854775808", "inner=:-9223372036854775808"),
        (
            "9223372036854775808",
            "inner.n is 9223372036854775808, not a whole number of 64 bits",
        ),
        ("1.0", "inner.n is 1.0, not a whole number of 64 bits"),
        ("1e3", "inner.n is 1e3, not a whole number of 64 bits"),
        ("01", "a comma is missing at byte 17"),
        ("+1", "not the start of a value at byte 16"),
        ("1.", "a number lacks a digit at byte 18"),
    ] {
        check(&format!(r#"{{"inner": {{"n": {text}}}}}"#), expect);
    }
    check(r#"{"other": [1e999999, -0.0E+1, 1e-5]}"#, "");
}

#[test]
fn invalid_characters_are_replaced() {
    check(r#"{"Task": "\ud800"}"#, "Task=\u{fffd}");
    check(
        r#"{"Task": "\ud800\ud800\udc00"}"#,
        "Task=\u{fffd}\u{10000}",
    );
    check(
        r#"{"Task": "\ud83d\ude00 \udc00x \ud800\n"}"#,
        "Task=😀 \u{fffd}x \u{fffd}\n",
    );
    check(
        r#"{"Task": "\"\\\/\b\f\r\t\u00e9\u0000"}"#,
        "Task=\"\\/\u{8}\u{c}\r\té\0",
    );
    assert_eq!(
        said(b"{\"Task\": \"a\xe2\x82\xffb\xed\xa0\x80\"}"),
        "Task=a\u{fffd}\u{fffd}\u{fffd}b\u{fffd}\u{fffd}\u{fffd}"
    );
    assert_eq!(
        said(b"{\"Task\": \"\xe2\x82\\n\"}"),
        "Task=\u{fffd}\u{fffd}\n"
    );
}

#[test]
fn invalid_json_is_refused_anywhere() {
    for bad in [
        "",
        " ",
        "{",
        "}",
        "{]",
        "[1}",
        "nul",
        "nulll",
        "tru",
        "{\"a\" 1}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":1 \"b\":2}",
        "{} {}",
        "{}x",
        "{\"a\":[1,]}",
        "{\"a\":[,1]}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\t\"}",
        "{\"a\":\"x}",
        "{\"a\":-}",
        "{\"a\":1e}",
        "{\"a\":.5}",
        "{\"a\":NaN}",
        "\u{feff}{}",
        "{\"a\":\"\\",
        "{\"a\":1,",
        "{\"a\"",
        "{\"a\":/*x*/1}",
        "{\"\\q\":1}",
    ] {
        assert!(
            matches!(read::<Any>(bad.as_bytes()), Err(JsonError::Syntax { .. })),
            "{bad:?} was read"
        );
    }
    check(
        " \t\r\n{ \"other\" : [ { } , [ ] , \"]}\\\"\" , true , false , null ] } \n",
        "",
    );
}

#[test]
fn nesting_is_limited_and_costs_no_stack() {
    let nested = |depth: usize| {
        format!(
            "{{\"other\": {}{}}}",
            "[".repeat(depth - 1),
            "]".repeat(depth - 1)
        )
    };
    check(&nested(MAX_DEPTH), "");
    check(
        &nested(MAX_DEPTH + 1),
        "it is nested too deeply at byte 10009",
    );
    let objects = format!("{}1{}", r#"{"a":"#.repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    check(&objects, "");
    let shown: Value = read(nested(MAX_DEPTH).as_bytes()).unwrap();
    assert!(
        shown.to_string().len() > MAX_DEPTH,
        "what is too deep to show is shown as text"
    );
}

#[test]
fn a_value_is_what_the_text_says() {
    let text = r#"{"a": [1, -2, 3.5, 1e400, 18446744073709551615, "\ud800", null, true], "A": {}, "b": 1, "b": {"c": 2}}"#;
    let value: Value = read(text.as_bytes()).unwrap();
    let expect = serde_json::json!({"a": [1, -2, 3.5, "1e400", u64::MAX, "\u{fffd}", null, true], "A": {}, "b": {"c": 2}});
    assert_eq!(value, expect);
    let Value::Object(mut map) = serde_json::json!({"CMD": 1, "env": 2, "Env": 3, "x": 4}) else {
        unreachable!()
    };
    usual_names(&mut map, &["Cmd", "Env"]);
    assert_eq!(
        Value::Object(map),
        serde_json::json!({"Cmd": 1, "Env": 3, "x": 4})
    );
}
