//! Checks a value against the part of JSON Schema that the published schema uses, and a page for being whole and offline.
use serde_json::Value;

/// Panics where the value is not what the schema says.
pub fn check(schema: &Value, value: &Value) {
    if let Err(why) = fits(schema, schema, value, "$") {
        panic!("{why}");
    }
    // A checker that lets everything through would not be one.
    let mut broken = value.clone();
    broken["totals"]["submitted"] = Value::from("many");
    assert!(fits(schema, schema, &broken, "$").is_err());
    let mut broken = value.clone();
    broken.as_object_mut().expect("an object").remove("verdict");
    assert!(fits(schema, schema, &broken, "$").is_err());
}

fn of_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("the schema has the unknown type {other}"),
    }
}

fn fits(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").ok_or_else(|| format!("{at}: {name} is elsewhere"))?;
        return fits(root, &root["$defs"][name], value, at);
    }
    for list in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[list].as_array() {
            let any = choices.iter().any(|choice| fits(root, choice, value, at).is_ok());
            return if any { Ok(()) } else { Err(format!("{at}: fits none of {list}")) };
        }
    }
    if let Some(wanted) = schema.get("const") {
        return if wanted == value { Ok(()) } else { Err(format!("{at}: is not {wanted}")) };
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        return Err(format!("{at}: {value} is none of {values:?}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|name| of_type(name, value)) {
        return Err(format!("{at}: is not of {types:?}"));
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                return Err(format!("{at}: has no {name}"));
            }
        }
        for (name, inner) in object {
            let known = schema["properties"].get(name).or(schema.get("additionalProperties"));
            if let Some(known) = known.filter(|known| known.is_object()) {
                fits(root, known, inner, &format!("{at}.{name}"))?;
            }
        }
    }
    for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
        let known = schema["prefixItems"].get(index).or(schema.get("items"));
        if let Some(known) = known.filter(|known| known.is_object()) {
            fits(root, known, inner, &format!("{at}[{index}]"))?;
        }
    }
    Ok(())
}

/// Elements without an end.
const VOID: [&str; 6] = ["meta", "br", "line", "circle", "rect", "polyline"];

/// Every element is closed in its turn, and nothing is fetched from anywhere.
pub fn offline_page(html: &str) {
    for word in ["<script", "src=", "href=", "@import", "url("] {
        assert!(!html.contains(word), "the page has {word}");
    }
    let body = html.strip_prefix("<!doctype html>").expect("a doctype");
    let mut open: Vec<&str> = Vec::new();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        let end = rest[start..].find('>').expect("an element ends") + start;
        let inside = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "elements overlap");
            continue;
        }
        let name = inside.split([' ', '/']).next().unwrap_or_default();
        if name == "style" {
            rest = &rest[rest.find("</style>").expect("a style ends") + 8..];
        } else if !inside.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    for wanted in
        ["Thresholds", "Environment", "Response time over time", "Throughput", "Ledger", "<svg", "p99.99"]
    {
        assert!(html.contains(wanted), "the page has no {wanted}");
    }
}
