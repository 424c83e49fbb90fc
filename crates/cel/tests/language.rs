//! Expressions against their values, errors and costs.

use cel::{Env, Meter, PER_CALL_LIMIT, Type, Value};
use serde_json::{Value as Json, json};

fn env() -> Env {
    let inner = Type::object(
        "object.spec",
        [
            ("replicas", Type::Int),
            ("name", Type::String),
            ("a__dot__b", Type::String),
            ("ratio", Type::Double),
            ("at", Type::Timestamp),
        ],
    );
    Env::new()
        .variable(
            "self",
            Type::object(
                "object",
                [
                    ("spec", inner),
                    ("labels", Type::map(Type::String, Type::String)),
                    ("items", Type::list(Type::Int)),
                ],
            ),
        )
        .variable("any", Type::Dyn)
        .variable("words", Type::list(Type::String))
}

fn input() -> (Json, Json, Json) {
    (
        json!({"spec": {"replicas": 3, "name": "web", "a.b": "dotted", "ratio": 2, "at": "2026-01-02T03:04:05Z"},
               "labels": {"app": "x", "tier": "y"}, "items": [1, 2, 3]}),
        json!({"metadata": {"name": "n", "labels": {"a/b": "c"}}, "n": 7, "f": 1.5, "nothing": null, "list": [{"k": 1}, {"k": 2}]}),
        json!(["b", "a"]),
    )
}

/// The value as JSON text, or the error; with the cost.
fn run(source: &str) -> (String, u64) {
    let env = env();
    let program = match env.compile(source) {
        Ok(program) => program,
        Err(e) => return (e.0, 0),
    };
    let (object, any, words) = input();
    let ty = |name: &str| match name {
        "self" => env.compile("self").unwrap().result_type().clone(),
        _ => Type::Dyn,
    };
    let variables: Vec<(&str, Value<'_>)> = vec![
        ("self", Value::json(&object, &ty("self"))),
        ("any", Value::json(&any, &Type::Dyn)),
        ("words", Value::json(&words, &Type::list(Type::String))),
    ];
    let mut meter = Meter::new(PER_CALL_LIMIT);
    let shown = match program.evaluate(&variables, &mut meter) {
        Ok(Value::Type(name)) => name.to_string(),
        Ok(value) => value.to_json().map_or_else(|e| e.to_string(), |j| j.to_string()),
        Err(e) => e.to_string(),
    };
    (shown, meter.used())
}

fn check(cases: &[(&str, &str)]) {
    for (source, expected) in cases {
        assert_eq!(run(source).0, *expected, "{source}");
    }
}

#[test]
fn operators_and_literals() {
    check(&[
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("7 / 2", "3"),
        ("-7 % 3", "-1"),
        ("1 / 0", "division by zero"),
        ("5 % 0", "modulus by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("1.5 + 2.0", "3.5"),
        ("2u + 3u", "5"),
        ("dyn(1) == 1.0", "true"),
        ("1u < 2", "true"),
        ("0xff", "255"),
        ("'a' + \"b\"", "\"ab\""),
        (r"'\x41\u00e9\n\101'", "\"Aé\\nA\""),
        (r"r'\d+'", "\"\\\\d+\""),
        ("'''a'b'''", "\"a'b\""),
        ("b'ab' == b'\\x61\\x62'", "true"),
        ("true || 1 / 0 == 1", "true"),
        ("1 / 0 == 1 || true", "true"),
        ("1 / 0 == 1 && false", "false"),
        ("1 / 0 == 1 && true", "division by zero"),
        ("true ? 'y' : 'n'", "\"y\""),
        ("!!true", "true"),
        ("[1, 2] + [3]", "[1,2,3]"),
        ("{'a': 1}['a']", "1"),
        ("{'a': 1}['b']", "no such key: b"),
        ("[1][3]", "index out of bounds: 3"),
        ("2 in [1, 2]", "true"),
        ("'a' in {'a': 1}", "true"),
        ("'abc' < 'abd'", "true"),
        ("type(1) == int", "true"),
        ("type('')", "string"),
        ("null == null", "true"),
        ("1 // comment", "1"),
    ]);
}

#[test]
fn fields_of_json() {
    check(&[
        ("self.spec.replicas + 1", "4"),
        ("self.spec.a__dot__b", "\"dotted\""),
        ("self.spec.ratio / 4.0", "0.5"),
        ("self.spec.at.getFullYear()", "2026"),
        ("self.spec.at > timestamp('2025-01-01T00:00:00Z')", "true"),
        ("has(self.spec.name)", "true"),
        ("has(any.metadata.missing)", "false"),
        ("has(any.missing.x)", "no such key: missing"),
        ("any.metadata.labels['a/b']", "\"c\""),
        ("any.n + 1", "8"),
        ("any.f", "1.5"),
        ("any.nothing == null", "true"),
        ("any.missing", "no such key: missing"),
        ("any.?missing.?deeper.orValue('d')", "\"d\""),
        ("any.?metadata.name.orValue('d')", "\"n\""),
        ("any[?'zzz'].hasValue()", "false"),
        ("any.list.map(i, i.k)", "[1,2]"),
        ("optional.of(1).optMap(v, v + 1).value()", "2"),
        ("optional.none().value()", "optional.none() dereference"),
        ("[?optional.of(1), ?optional.none()]", "[1]"),
        ("self.items == [1, 2, 3]", "true"),
    ]);
}

#[test]
fn macros() {
    check(&[
        ("[1, 2, 3].all(x, x > 0)", "true"),
        ("[1, 2, 3].exists(x, x == 2)", "true"),
        ("[1, 2, 2].exists_one(x, x == 2)", "false"),
        ("[1, 2, 3].map(x, x * 2)", "[2,4,6]"),
        ("[1, 2, 3].map(x, x > 1, x * 2)", "[4,6]"),
        ("[1, 2, 3].filter(x, x != 2)", "[1,3]"),
        ("self.labels.all(k, k.size() > 1)", "true"),
        ("self.labels.map(k, self.labels[k])", "[\"x\",\"y\"]"),
        ("[1, 2].all(i, v, i < v)", "true"),
        ("{'a': 1}.transformMap(k, v, v + 1)", "{\"a\":2}"),
        ("{'a': 1}.transformMapEntry(k, v, {k + 'b': v})", "{\"ab\":1}"),
        ("['x'].transformList(i, v, v + string(i))", "[\"x0\"]"),
        ("[1, 0].exists(x, 1 / x == 1)", "true"),
        ("[0, 1].exists(x, 1 / x == 1)", "true"),
        ("[0, 2].exists(x, 1 / x == 1)", "division by zero"),
        ("[[1, 2], [3]].all(l, l.exists(x, x > 1))", "true"),
    ]);
}

#[test]
fn libraries() {
    check(&[
        ("'tacocat'.indexOf('o')", "3"),
        ("'a-b-c'.split('-', 2)", "[\"a\",\"b-c\"]"),
        ("'hello'.substring(1, 3)", "\"el\""),
        ("'hello'.substring(9)", "index out of range: 9"),
        ("'%s is %d or %.2f'.format([dyn('x'), 3, 1.5])", "\"x is 3 or 1.50\""),
        ("['a', 'b'].join('/')", "\"a/b\""),
        ("'abc123'.find('[0-9]+')", "\"123\""),
        ("'1a2'.findAll('[0-9]')", "[\"1\",\"2\"]"),
        ("'x'.matches('^[a-z]$')", "true"),
        ("[3, 1, 2].max()", "3"),
        ("[3, 1, 2].sort()", "[1,2,3]"),
        ("words.isSorted()", "false"),
        ("[1, 2].sum()", "3"),
        ("sets.contains([1, 2], [2])", "true"),
        ("[1, 1, 2].distinct()", "[1,2]"),
        ("quantity('1Gi').isGreaterThan(quantity('1G'))", "true"),
        ("quantity('50k').add(20).asInteger()", "50020"),
        ("isQuantity('x')", "false"),
        ("ip('192.168.0.1').family()", "4"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", "true"),
        ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", "true"),
        ("isIP('::ffff:1.2.3.4')", "false"),
        ("url('https://u@example.com:80/p?q=1').getHost()", "\"example.com:80\""),
        ("url('https://example.com:80/p?q=1').getQuery()['q'][0]", "\"1\""),
        ("isURL('../x')", "false"),
        ("format.dns1123Label().validate('Abc').hasValue()", "true"),
        ("format.named('uuid').hasValue()", "true"),
        ("semver('1.2.3-rc.1').isLessThan(semver('1.2.3'))", "true"),
        ("semver('v1.2', true).minor()", "2"),
        ("jsonpatch.escapeKey('a/b~c')", "\"a~1b~0c\""),
        ("duration('1h').getMinutes()", "60"),
        ("timestamp('2026-01-02T03:04:05Z') + duration('1s') == timestamp('2026-01-02T03:04:06Z')", "true"),
        ("string(1.5)", "\"1.5\""),
        ("int('12') + int(2.9)", "14"),
        ("strings.quote('a\"b')", "\"\\\"a\\\\\\\"b\\\"\""),
    ]);
}

#[test]
fn mistakes_in_the_reference_words() {
    check(&[
        ("x + 1", "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x + 1\n | ^"),
        ("self.y", "ERROR: <input>:1:5: undefined field 'y'\n | self.y\n | ....^"),
        (
            "1 + 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
        ),
        ("foo(1)", "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(1)\n | ...^"),
        (
            "'a'.startsWith(1)",
            "ERROR: <input>:1:15: found no matching overload for 'startsWith' applied to 'string.(int)'\n | 'a'.startsWith(1)\n | ..............^",
        ),
        ("1 && true", "ERROR: <input>:1:1: expected type 'bool' but found 'int'\n | 1 && true\n | ^"),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        ("(1).x", "ERROR: <input>:1:4: type 'int' does not support field selection\n | (1).x\n | ...^"),
        (
            "1 +",
            "ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | 1 +\n | ...^",
        ),
        ("duration('x')", "ERROR: <input>:1:10: invalid duration argument\n | duration('x')\n | .........^"),
        (
            "'a'.matches('(')",
            "ERROR: <input>:1:13: invalid matches argument\n | 'a'.matches('(')\n | ............^",
        ),
        (
            "(1).all(x, true)",
            "ERROR: <input>:1:2: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | (1).all(x, true)\n | .^",
        ),
    ]);
}

#[test]
fn costs() {
    for (source, cost) in [
        ("true", 0),
        ("self.spec.replicas", 3),
        ("self.spec.replicas > 1", 4),
        ("has(self.spec.name)", 2),
        ("self.items[0]", 3),
        ("any['me' + 'tadata']", 3),
        ("1 > 2 ? 5 : 3", 1),
        ("(1 > 2 || 2 > 1) == true", 3),
        ("[self.spec.replicas].all(x, true)", 17),
        ("self.items.filter(x, x % 2 == 0)", 25),
        ("'12345678901234567890' == '123456789012345678901234567890'", 2),
        ("'123'.matches('[0-9]')", 2),
        ("'abc 123 def 123'.replace('123', '456')", 3),
        ("quantity('1Gi').isGreaterThan(quantity('1G'))", 3),
    ] {
        assert_eq!(run(source).1, cost, "{source}: {}", run(source).0);
    }
    let endless = "lists.range(1000).all(a, lists.range(1000).all(b, true))";
    assert_eq!(run(endless).0, "operation cancelled: actual cost limit exceeded");
}

#[test]
fn depth_is_bounded() {
    let nested = format!("{}1{}", "(".repeat(240), ")".repeat(240));
    assert_eq!(run(&nested).0, "1");
    let nested = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(run(&nested).0.contains("recursion limit exceeded"));
    let chain = vec!["1"; 300].join(" + ");
    assert_eq!(run(&chain).0, "300");
    let chain = vec!["1"; 20_000].join(" + ");
    assert!(run(&chain).0.contains("recursion limit exceeded"));
    let chain = vec!["true"; 10_000].join(" && ");
    assert_eq!(run(&chain).0, "true");
}

#[test]
fn authorizer() {
    struct Only(&'static str);
    impl cel::Authorizer for Only {
        fn authorize(&self, request: &cel::AuthorizationRequest) -> cel::Decision {
            cel::Decision {
                allowed: request.resource == self.0 && request.verb == "get",
                ..Default::default()
            }
        }
    }
    let env = Env::new().variable("authorizer", Type::Opaque("kubernetes.authorization.Authorizer"));
    for (source, expected, cost) in [
        ("authorizer.group('').resource('pods').namespace('d').check('get').allowed()", true, 350_005),
        ("authorizer.group('').resource('nodes').check('get').allowed()", false, 350_004),
        ("authorizer.path('/healthz').check('get').allowed()", false, 350_003),
    ] {
        let host = Only("pods");
        let mut meter = Meter::new(PER_CALL_LIMIT);
        let variables = vec![("authorizer", cel::authorizer(&host))];
        let value = env.compile(source).unwrap().evaluate(&variables, &mut meter).unwrap();
        assert_eq!((value.as_bool(), meter.used()), (Some(expected), cost), "{source}");
    }
}

#[test]
fn estimates_from_a_schema() {
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 10},
        "items": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 10}},
        "free": {"type": "array", "items": {"type": "string"}},
    }});
    let env = Env::new().variable("self", cel::structural::type_of(&schema, false).unwrap());
    let estimate =
        |source: &str| env.compile(source).unwrap().estimate(&cel::structural::SchemaSizes(&schema)).max;
    assert_eq!(estimate("self.name == 'abcdefghij'"), 3);
    assert_eq!(estimate("self.items.all(x, x == 'a')"), 5 * 5 + 3);
    assert!(estimate("self.free.all(x, self.free.all(y, x == y))") > 10_000_000);
}
