//! Specs: `docs/spec.schema.json`, which editors use, accepts exactly what the agent accepts.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, ensure};
use monitor_agent::{
    frameworks,
    specs::{FRAMEWORK_KEYS, KNOWN, read},
};
use monitor_tests::specs;
use serde_json::{Value, json};

/// Returns the properties of a part of the schema, in their order.
fn properties<'a>(schema: &'a Value, part: &str) -> Vec<&'a str> {
    let part = if part.is_empty() { schema } else { &schema["$defs"][part] };
    part["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn the_schema_for_editors_is_what_the_agent_takes() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join("docs/spec.schema.json"))?)?;
    let validator = jsonschema::validator_for(&schema)?;
    let is_valid = |text: &str| -> Result<bool> { Ok(validator.is_valid(&toml::from_str::<Value>(text)?)) };
    let (jobs, work) = (specs::text("jobs")?, specs::text("work")?);
    let known = KNOWN.iter().map(|(_, text)| (*text).to_owned());
    let examples = specs::examples()?;
    ensure!(examples.len() >= 3, "only {} examples", examples.len());
    for text in examples.into_iter().chain(known) {
        ensure!(is_valid(&text)? && read("", &text).is_ok(), "{text}");
    }
    for (text, part, other) in [
        (&jobs, "name = \"jobs\"", ""),
        (&jobs, "[[operation]]", "[[opration]]"),
        (&jobs, "key = 1", "kye = 1"),
        (&jobs, "key = 1", "key = \"one\""),
        (&jobs, "\"pointer\"", "\"thread\""),
        (&work, "allow_expensive = true", ""),
        (&work, "[\"done\", \"failed\"]", "[\"done\"]"),
        (&work, "error = 1", "error = 9"),
        (&jobs, "key = 1", "key = 9"),
        (&jobs, "queue = ", &format!("{} = ", "q".repeat(65))),
        (&jobs, "\"jobs\"", &format!("\"{}\"", "j".repeat(65))),
        (&jobs, "\"job\"", &format!("\"{}\"", "j".repeat(257))),
        (&jobs, "(*queue).begin\"", "*\"\nat_most = 65"),
        (&jobs, "job = 1", "job = 1, two = 0, three = 0"),
        (&work, "allow_expensive = true", "allow_expensive = false"),
        (&work, "[[operation.start]]", "[[operation.finish]]\nfunction = \"main.f\"\n[[operation.start]]"),
        (&work, "\"goroutine\"", "\"pointer\""),
        (&work, "\"nested\"", "\"first_start\""),
        (&work, "side = \"client\"\n", ""),
        (&work, "error = 1", "error = 8"),
        (&work, "error = 1", "error = 1, number = 0"),
        (&work, "error = 1", "error = 1, results = \"wx\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nallow_expensive = true"),
        (&jobs, "key = \"pointer\"", "key = \"goroutine\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\npolicy = \"nested\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nfailed = \"< 0\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nfailed = \"== -1\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nsigned = \"yes\""),
        (&jobs, "number = \"job.tries\"", "number = \"job.tries\", text = \"a\""),
        (&jobs, "number = \"job.tries\"", "text = \"a\", zero = \"b\""),
        (&jobs, "number = \"job.tries\"", "number = \"tries\""),
        (&jobs, "job.tries", &format!("job.{}", "t".repeat(253))),
        (&jobs, "\"job.kind\"", "\"kind\""),
        (&jobs, "error = 2", "error = 8"),
        (&jobs, "error = 2", "error = 2\nnumber = 0"),
        (&jobs, "arguments = \"ww\"", &format!("arguments = \"{}\"", "w".repeat(257))),
        (&jobs, "arguments = \"ww\"\n", ""),
        (&jobs, "arguments = \"ww\"", "arguments = \"{ww}\"\nerror = 0"),
        (&jobs, "arguments = \"ww\"", "arguments = \"ww\"\npointers = { job = 1 }"),
        (&jobs, "main.(*queue).begin", "begin"),
        (&jobs, "(*queue).begin", "(*queue).*"),
        (&jobs, "(*queue).begin", "(*).begin"),
        (&jobs, "(*queue).begin", "(*"),
        (&jobs, "\"main.job\"", "\"job\""),
        (&jobs, "\"main.job\"", "\"(main.a).(*main.job)\""),
        (&jobs, "name = \"jobs\"", "name = \"go_jobs\""),
        (&jobs, "name = \"jobs\"", "name = \"runtime_jobs\""),
        (&jobs, "queue = ", "le = "),
        (&jobs, "queue = ", "__queue = "),
    ] {
        let changed = text.replacen(part, other, 1);
        ensure!(changed != *text && !is_valid(&changed)? && read("", &changed).is_err(), "{changed}");
    }
    for (text, part, other) in [
        (&jobs, "number = \"job.tries\"", "number = \"job.tries\", zero = \"none\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nsigned = true\nfailed = \"< 0\""),
        (&jobs, "key = \"pointer\"", "key = \"pointer\"\nfailed = \">= 500\""),
        (&jobs, "(*queue).begin\"", "(*queue).*\"\nat_most = 3"),
        (&jobs, "(*queue).begin\"", "(*\"\nat_most = 3"),
        (&jobs, "(*queue).begin", "set[struct { id int }].begin"),
        (&work, "error = 1", "error = 1, results = \"w{ww}\""),
        (&work, "\"nested\"", "\"first_finish\""),
        (&work, "returns = { error = 1 }", "returns = { number = 0, results = \"1\" }\nfailed = \"!= 0\""),
    ] {
        let changed = text.replacen(part, other, 1);
        let found = read("", &changed).map(|_| ());
        ensure!(changed != *text && is_valid(&changed)? && found.is_ok(), "{found:?}: {changed}");
    }
    for (part, text, at, end) in [
        ("", &jobs, "name = \"jobs\"", "\n"),
        ("operation", &jobs, "key = \"pointer\"", "\n"),
        ("entry", &jobs, "error = 2", "\n"),
        ("returns", &work, "error = 1", ", "),
        ("source", &work, "outcome = ", ", "),
    ] {
        knows_the_same_fields(&schema, part, &text.replacen(at, &format!("nothing = 1{end}{at}"), 1))?;
    }
    Ok(())
}

/// Fails unless the error about an unknown field lists exactly the fields in this part of the schema.
fn knows_the_same_fields(schema: &Value, part: &str, text: &str) -> Result<()> {
    let error = read("", text).expect_err("an unknown field").to_string();
    let (_, expected) = error.split_once("expected one of ").with_context(|| error.clone())?;
    let mut expected: Vec<_> = expected.split(", ").map(|name| name.trim_matches('`')).collect();
    let mut documented = properties(schema, part);
    expected.sort_unstable();
    documented.sort_unstable();
    ensure!(expected == documented, "{part}: {expected:?}, {documented:?}");
    Ok(())
}

#[test]
fn the_schema_of_native_functions_is_what_the_agent_takes() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join("docs/spec.schema.json"))?)?;
    let validator = jsonschema::validator_for(&schema)?;
    let is_valid = |text: &str| -> Result<bool> { Ok(validator.is_valid(&toml::from_str::<Value>(text)?)) };
    let stock = specs::text("stock")?;
    let returns = "returns = { by = \"instructions\", number = \"int\" }\nallow_expensive = true";
    let pairs = "name = \"pairs\"\n[[native]]\nname = \"job\"\nkey = \"int\"\n[[native.start]]\nfunction = \"begin\"\nkey = 1\n\
                 [[native.finish]]\nfunction = \"end\"\nkey = 0\nnumber = 1\n";
    let twice = format!("{stock}\n{}", stock.split_once("\n\n").map_or("", |(_, operation)| operation));
    let by_probe = "returns = { by = \"probe\", number = \"bool\" }\nnothing_is_thrown = true";
    let probed = stock.replace(returns, by_probe);
    for text in [
        &stock,
        &twice,
        pairs,
        &pairs.replace("\"int\"", "\"number\"\npolicy = \"first_start\"\nside = \"client\""),
        &stock.replace("\"thread\"", "\"thread\"\npolicy = \"first_finish\""),
        &probed,
        &stock.replace("\"stock_lookup\"", "\"Stock::lookup(int, char const*)\""),
        &stock.replace("\"stock_lookup\"", "\"stock_*\"\nat_most = 64"),
        &stock.replace("cstrings", "strings"),
    ] {
        let read = read("", text).map(|_| ());
        ensure!(is_valid(text)? && read.is_ok(), "{read:?}: {text}");
    }
    for (text, part, other) in [
        (stock.as_str(), "[[native]]", "[[naitve]]"),
        (&stock, "[[native]]", "[native]"),
        (&stock, "help = ", "module = \"std\"\nhelp = "),
        (&stock, "key = \"thread\"", "key = \"goroutine\""),
        (&stock, "key = \"thread\"", "key = \"thread\"\npolicy = \"first_start\""),
        (&probed, "key = \"thread\"", "key = \"thread\"\npolicy = \"first_start\""),
        (&stock, "key = \"thread\"\n", ""),
        (&stock, returns, ""),
        (&stock, "allow_expensive = true", ""),
        (&stock, "allow_expensive = true", "nothing_is_thrown = true"),
        (&stock, "allow_expensive = true", "allow_expensive = true\nnothing_is_thrown = true"),
        (&stock, "by = \"instructions\"", "by = \"magic\""),
        (&stock, "number = \"int\"", "number = \"float\""),
        (&stock, "\"< 0\"", "\"<0\""),
        (&stock, "cstrings = { item = 1 }", "cstrings = { item = 6 }"),
        (&stock, "cstrings = { item = 1 }", "cstrings = { item = \"one\" }"),
        (&stock, "cstrings = { item = 1 }", "pointers = { item = 1 }"),
        (&stock, "cstrings = { item = 1 }", "arguments = \"ww\""),
        (&stock, "\"stock_lookup\"", "\"stock_*\"\nat_most = 10000"),
        (&stock, "\"stock_lookup\"", "\"\""),
        (&stock, "[\"found\", \"missing\"]", "[\"found\"]"),
        (&stock, "[[native.start]]", "[[native.finish]]\nfunction = \"end\"\n[[native.start]]"),
        (&stock, "cstrings = ", "key = 0\ncstrings = "),
        (&stock, "key = \"thread\"", "key = \"pointer\""),
        (&stock, "{ number = \"result\" }", "{ number = \"item.count\" }"),
        (&stock, "{ number = \"result\" }", "{ number = \"result\", text = \"a\" }"),
        (&stock, "\"stock_lookup\"", "\"stock_*\""),
        (&stock, "item = \"item\"", "le = \"item\""),
        (pairs, "\"int\"", "\"int\"\nallow_expensive = true"),
        (pairs, "[[native.finish]]", "[[native.end]]"),
        (pairs, "\"int\"", "\"int\"\npolicy = \"nested\""),
        (pairs, "\"int\"", "\"int\"\ntypes = { job = \"main.job\" }"),
    ] {
        let changed = text.replacen(part, other, 1);
        let is_taken = toml::from_str::<Value>(&changed).is_ok_and(|value| validator.is_valid(&value));
        ensure!(changed != *text && !is_taken && read("", &changed).is_err(), "{changed}");
    }
    for (part, at, end) in [
        ("native", "key = \"thread\"", "\n"),
        ("nativeEntry", "cstrings = ", "\n"),
        ("source", "outcome = ", ", "),
    ] {
        knows_the_same_fields(&schema, part, &stock.replacen(at, &format!("nothing = 1{end}{at}"), 1))?;
    }
    Ok(())
}

#[test]
fn the_schema_has_the_agents_own_frameworks() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join("docs/spec.schema.json"))?)?;
    let of_frameworks = json!({ "$ref": "#/$defs/framework", "$defs": schema["$defs"] });
    let (of_specs, of_frameworks) =
        (jsonschema::validator_for(&schema)?, jsonschema::validator_for(&of_frameworks)?);
    for (file, text) in frameworks::FILES {
        let value = toml::from_str::<Value>(text)?;
        let errors: Vec<_> = of_frameworks.iter_errors(&value).map(|error| error.to_string()).collect();
        ensure!(errors.is_empty(), "{file}: {errors:?}");
        ensure!(!of_specs.is_valid(&value), "{file} is taken for a spec");
        let error = read(file, text).expect_err("no spec").to_string();
        ensure!(error.contains("only the frameworks that the agent has itself have the key "), "{error}");
        for (part, other) in
            [("told_by = ", "tolt_by = "), ("side = \"server\"", ""), ("[[operation", "[[opration")]
        {
            let changed = text.replacen(part, other, 1);
            ensure!(changed != text && frameworks::read(file, &changed).is_err(), "{file}: {other}");
            let is_valid =
                toml::from_str::<Value>(&changed).is_ok_and(|value| of_frameworks.is_valid(&value));
            ensure!(!is_valid, "{file}: the schema takes {other}");
        }
    }
    // The reader of specs knows the keys that only frameworks may have.
    let of =
        |parts: &[&str]| -> BTreeSet<_> { parts.iter().flat_map(|part| properties(&schema, part)).collect() };
    let keys = &of(&["by_type", "by_function", "shape", "call"]) - &of(&["", "operation"]);
    ensure!(keys == BTreeSet::from(FRAMEWORK_KEYS), "{keys:?}");
    Ok(())
}
