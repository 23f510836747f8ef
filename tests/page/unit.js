/* unit.js - checks examples/program/page.html under node: its pure functions, which need no
   document, its colours, and the text itself. Then plants faults in the functions: each must be
   noticed. Closes with `N passed, N failed`. */
"use strict";
const fs = require("fs"), path = require("path"), vm = require("vm");

const page = fs.readFileSync(path.join(__dirname, "../../examples/program/page.html"), "utf8");
const pure = /<script id="pure">([^]*?)<\/script>/.exec(page)[1];
const NAMES = ["byteLength", "bytesOf", "floatsOf", "readExamples", "firingTokens", "faultOf",
    "pieces",
    "plainText", "isRightToLeft", "wholeNumber", "number", "percent", "short", "ticks", "logTicks",
    "rangeOf", "parseQuery", "tokenMatches", "parseHash", "writeHash"];

/* The functions of a text of the pure part. */
function functionsOf(text) {
    const box = vm.createContext({ atob, URLSearchParams });
    return vm.runInContext(`${text}\n({${NAMES.join(",")}})`, box);
}

/* ---- checks: [name, what is found, what is expected], compared as JSON */

function packed(examples, idBytes) {
    const out = [];
    for (const e of examples) {
        const b = Buffer.alloc(7 + e.tokens.length * (idBytes + 1) + 4);
        b.writeUInt32LE(e.context, 0);
        b.writeInt8(e.interval, 4);
        b[5] = e.hit < 0 ? 255 : e.hit;
        b[6] = e.tokens.length;
        e.tokens.forEach((t, k) => b.writeUIntLE(t, 7 + k * idBytes, idBytes));
        e.bytes.forEach((v, k) => { b[7 + e.tokens.length * idBytes + k] = v });
        b.writeFloatLE(e.peak, b.length - 4);
        out.push(b);
    }
    return Buffer.concat(out);
}

const EXAMPLES = [
    { context: 4000000000, interval: -1, hit: 1, tokens: [7, 60000, 0], bytes: [0, 255, 1],
        peak: 2.5 },
    { context: 3, interval: 4, hit: -1, tokens: [5], bytes: [51], peak: -0.25 },
    { context: 0, interval: 0, hit: 0, tokens: [9, 256], bytes: [2, 0], peak: 1 }];
const WIDE = [{ context: 1, interval: 2, hit: 0, tokens: [151935], bytes: [255], peak: 1 }];
const READ = EXAMPLES.map(({ bytes, ...e }) => ({
    context: e.context, interval: e.interval, hit: e.hit, tokens: e.tokens,
    values: bytes.map(v => v / 255), peak: e.peak }));

function throws(f) {
    try { f() } catch (e) { return true }
    return false;
}

function packing(f) {
    const bytes = Buffer.from(Array.from({ length: 20 }, (_, i) => 255 - 13 * i & 255)), wrong = [];
    for (let n = 0; n <= 20; n++)
        for (let from = 0; from <= n; from++)
            for (let to = from; to <= n; to++) {
                const got = Buffer.from(f.bytesOf(bytes.subarray(0, n).toString("base64"), from,
                    to));
                if (!got.equals(bytes.subarray(from, to))) wrong.push([n, from, to]);
            }
    const floats = Buffer.from(Float32Array.of(0, -1.5, 3e38, 1e-40).buffer).toString("base64");
    const three = packed(EXAMPLES, 3), two = packed(EXAMPLES, 2),
        short = two.subarray(0, two.length - 1);
    return [
        ["bytes of a base64 text, at all places", wrong, []],
        ["how many they are",
            [0, 1, 2, 3, 4].map(n => f.byteLength(bytes.subarray(0, n).toString("base64"))),
            [0, 1, 2, 3, 4]],
        ["no bytes beyond the end", throws(() => f.bytesOf("AAAA", 1, 4)), true],
        ["floats", Array.from(f.floatsOf(floats)),
            Array.from(Float32Array.of(0, -1.5, 3e38, 1e-40))],
        ["examples, tokens of 2 bytes", f.readExamples(two, 3, 2), READ],
        ["examples, tokens of 3 bytes", f.readExamples(three, 3, 3), READ],
        ["tokens beyond 65535", f.readExamples(packed(WIDE, 3), 1, 3)[0].tokens, [151935]],
        ["examples from amidst a buffer",
            f.readExamples(Buffer.concat([Buffer.alloc(5), two]).subarray(5), 3, 2), READ],
        ["examples that end early", throws(() => f.readExamples(short, 3, 2)), true],
        ["their tokens, too", throws(() => f.firingTokens(short, 3, 2)), true],
        ["more examples than there are", throws(() => f.readExamples(two, 4, 2)), true],
        ["tokens on which examples fire", f.firingTokens(two, 3, 2), [60000, 9]]];
}

function faults(f) {
    const good = { version: 1, tokens: [], features: [], about: [], notes: [], examples: "",
                   all: { density: "", max: "" }, window: { ids: 2 } };
    const without = key => f.faultOf({ ...good, [key]: undefined });
    return [
        ["whole data", f.faultOf(good), ""],
        ["no object", f.faultOf(null), "The data of this page is damaged."],
        ["another version", f.faultOf({ ...good, version: 2 }),
            "This page reads data of version 1, found version 2."],
        ...["tokens", "features", "about", "notes", "examples", "all", "window"].map(key =>
            [`without ${key}`, without(key), `The data of this page is damaged: "${key}" is missing.`])];
}

function tokens(f) {
    const hidden = [0, 1, 8, 13, 27, 0x7f, 0x85, 0xa0, 0xad, 0x34f, 0x61c, 0x180e, 0x200b, 0x200f,
        0x2028,
        0x202a, 0x202e, 0x2060, 0x2066, 0x2069, 0x2800, 0x3000, 0x3164, 0xd800, 0xdfff, 0xe000,
            0xfe0f,
        0xfeff, 0xe0041];
    const left = hidden.filter(c =>
        f.plainText("a" + String.fromCodePoint(c)).includes(String.fromCodePoint(c)));
    const text = t => f.plainText(t);
    return [
        ["no hidden character is left", left, []],
        ["blanks at the edges", text("  the "), "··the·"],
        ["a single blank within", text("of the"), "of the"],
        ["blanks in a context", f.pieces(" the  x", false), [{ text: " the  x", sign: false }]],
        ["line breaks and tabs", text("a\n\n\tb\r"), "a↵↵⇥b‹cr›"],
        ["controls", text("\0\x1b[1m\x05"), "‹nul›‹esc›[1m‹U+0005›"],
        ["bidi controls", text("\u202eabc\u2066"), "‹rlo›abc‹lri›"],
        ["signs are told from text", f.pieces("‹rlo›\u202e", true),
            [{ text: "‹rlo›", sign: false }, { text: "‹rlo›", sign: true }]],
        ["an empty token", text(""), "‹empty›"],
        ["a mark alone", text("\u0301"), "◌\u0301"],
        ["halves of characters", text("\ufffd\ufffd"), "\ufffd\ufffd"],
        ["markup is text", f.pieces("<b>&amp;", true), [{ text: "<b>&amp;", sign: false }]],
        ["astral characters", text("👩"), "👩"],
        ["right to left", ["abc", "שלום abc", "", "1, 2", "مرحبا بالعالم"].map(f.isRightToLeft),
            [false, true, false, false, true]]];
}

function numbers(f) {
    return [
        ["numbers", [0, 1.2345, -0.05, 99.96, 1234.5, 1e6, 1.5e-7, -2e-9, null, NaN].map(f.number),
            ["0", "1.23", "−0.0500", "100", "1,235", "1.0e6", "1.5e−7", "−2.0e−9", "–", "–"]],
        ["percents", [0, 1, 0.123456, 0.0123456, 0.00123, 0.0000123, 0.000001, 1e-8].map(f.percent),
            ["0%", "100.0%", "12.3%", "1.23%", "0.123%", "0.0012%", "0.0001%", "1.0e−6%"]],
        ["whole numbers", [0, 999, 1000, 1234567].map(f.wholeNumber),
            ["0", "999", "1,000", "1,234,567"]],
        ["short numbers", [0, 1500, 2e6, 0.25, -0.5, 3e9].map(f.short),
            ["0", "1.5k", "2M", "0.25", "−0.5", "3G"]],
        ["ticks", f.ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]],
        ["ticks across zero", f.ticks(-1.2, 1.2, 5).map(v => +v.toFixed(9)), [-1, -0.5, 0, 0.5, 1]],
        ["ticks of no range", f.ticks(3, 3, 5), [3]],
        ["ticks of decades", f.logTicks(-4, 0).map(t => +t.value.toPrecision(3)),
            [1e-4, 1e-3, 0.01, 0.1, 1]],
        ["ticks within decades", f.logTicks(0, 1).map(t => t.value), [1, 2, 5, 10]]];
}

function search(f) {
    const terms = q => f.parseQuery(q).terms, inf = x => x === Infinity ? "inf" : x === -Infinity
        ? "-inf" : x;
    const range = t => { const r = f.rangeOf(t); return r && r.map(inf) };
    const text = (where, text, quoted = false) => ({ kind: "text", where, text, quoted });
    return [
        ["ranges", ["0.1-2", "1%-5%", "1-5%", ">3", ">=3", "<1e-3", "2", "1e-5-1e-3",
            ".5..1"].map(range),
            [[0.1, 2], [0.01, 0.05], [0.01, 0.05], [3, "inf"], [3, "inf"], ["-inf", 0.001], [2, 2],
             [1e-5, 1e-3], [0.5, 1]]],
        ["no ranges", ["", "x", ">", "1-", "-1", ">1-2", "1-2-3"].map(range), Array(7).fill(null)],
        ["a word", terms("King"), [text("any", "king")]],
        ["a number", terms("17"), [{ ...text("any", "17"), number: 17 }]],
        ["fields", terms('logit:was token:"The"'),
            [text("logit", "was"), text("token", "the", true)]],
        ["quotes keep blanks", terms('" a b" c'), [text("any", " a b", true), text("any", "c")]],
        ["open quotes", terms('"ab'), [text("any", "ab", true)]],
        ["other colons are text", terms("http://x"), [text("any", "http://x")]],
        ["range terms", terms("density:1%-2% max:>3").map(t => [t.field, inf(t.low), inf(t.high)]),
            [["density", 0.01, 0.02], ["max", 3, "inf"]]],
        ["a fault", f.parseQuery("max:big").fault,
            'max: expected a range such as 0.5-2, >2 or <2, found "big".'],
        ["nothing", f.parseQuery('  "" ').terms, []],
        ["tokens that match",
            ["the", " the", "other", " then", "a"].map(t => f.tokenMatches(t, text("any", "the"))),
            [2, 2, 1, 1, 0]],
        ["tokens that match quotes",
            ["the", " the", "other", "  the"].map(t => f.tokenMatches(t, text("any", "the", true))),
            [2, 2, 0, 0]],
        ["a blank in quotes",
            ["the", " the"].map(t => f.tokenMatches(t, text("any", " the", true))), [0, 2]]];
}

function addresses(f) {
    const start = { view: "list", feature: -1, q: "", sort: "number", reversed: false,
        filter: "all" };
    const states = [start, { ...start, view: "feature", feature: 17 },
        { ...start, view: "map", filter: "dead" },
        { ...start, q: 'a&b=?#% "ש', sort: "density", reversed: true },
            { ...start, view: "about" }];
    return [
        ["states come back", states.map(s => f.parseHash(f.writeHash(s))), states],
        ["a bare address", f.writeHash(states[1]), "#f17"],
        ["an empty address", [f.parseHash(""), f.parseHash("#"), f.parseHash("#fx")],
            [start, start, start]]];
}

const all = f => [packing, faults, tokens, numbers, search, addresses].flatMap(part => part(f));
const holds = ([, found, expected]) => JSON.stringify(found) === JSON.stringify(expected);

/* ---- colours: the contrast of ink on each mixture of shade and paper, as browsers mix in Oklab */

function linear(hex) {
    return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
}
const times = (m, v) => m.map(row => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);
const TO_LMS = [[0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005]];
const FROM_LMS = [[4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010]];

/* Cube roots of the cones' answers are linear in Oklab, so that they mix as Oklab does. */
function mixture(a, b, part) {
    const roots = [a, b].map(hex => times(TO_LMS, linear(hex)).map(Math.cbrt));
    return times(FROM_LMS, roots[0].map((x, i) => (x * part + roots[1][i] * (1 - part)) ** 3));
}
const light = rgb => 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
function contrast(a, b) {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
}

function colours() {
    const value = (name, dark) =>
        new RegExp(`--${name}: light-dark\\((#\\w+), (#\\w+)\\)`).exec(page)[dark ? 2 : 1];
    const out = [];
    for (const dark of [false, true]) {
        const c = name => value(name, dark), theme = dark ? "dark" : "light";
        const on = (front, name, part = 1) =>
            contrast(linear(c(front)), mixture(c(name), c("paper"), part));
        const least = (front, name, most) =>
            Math.min(...Array.from({ length: 256 }, (_, v) => on(front, name, v / 255 * most)));
        const pairs = [["ink on shades", least("ink", "shade", 1)],
            ["ink on bars", least("ink", "up", 0.32)],
            ["ink on bars down", least("ink", "down", 0.32)], ["dim on paper", on("dim", "paper")],
            ["dim on the panel", on("dim", "panel")], ["links on paper", on("link", "paper")],
            ["ink on what is found", on("ink", "mark")], ["ink on the open row", on("ink", "pick")],
            ["links on the panel", on("link", "panel")]];
        for (const [name, ratio] of pairs) {
            if (process.argv[2] === "-v") console.log(theme, name, ratio.toFixed(2));
            out.push([`${theme}: ${name}: contrast ${ratio.toFixed(2)}`, ratio >= 4.5, true]);
        }
    }
    return out;
}

/* ---- the text of the page */

function text() {
    const banned = new RegExp("innerHTML|outerHTML|insertAdjacent|document\\.write|\\beval\\b|" +
        "new Function|fetch\\(|XMLHttp|import\\(|\\bsrc=|url\\(");
    const lines = page.split("\n"),
        long = lines.flatMap((line, k) => [...line].length > 100 ? [k + 1] : []);
    const outside = (page.match(/https?:\/\/[^"' ]*/g) || []).filter(a =>
        a !== "http://www.w3.org/2000/svg");
    return [
        ["the place of the data stands once", page.split("@DATA@").length, 2],
        ["nothing that takes a text for markup or code, or loads", banned.exec(page), null],
        ["no address", outside, []],
        ["at most 100 columns", long, []],
        ["at most 80 kB", Buffer.byteLength(page) <= 80000, true]];
}

/* ---- planted faults: [text of the pure part, what takes its place] */

const PLANTED = [
    ["from % 3", "0"], ["Math.ceil(to / 3)", "Math.floor(to / 3)"], ["idBytes === 3", "false"],
    ["getInt8", "getUint8"], ["v => v / 255", "v => v / 256"], ["end <= bytes.length", "true"],
    ["if (e.hit >= 0) found", "found"], ["k % 2", "k % 2 === 3"], ["\\p{Zl}", ""], ["\\p{DI}", ""],
    ["right.length * 2", "right.length"], ["a >= 99.95", "a >= 9999"], ["m[5] ? 0.01 : 1", "1"],
    ["m[1][0] === \">\"", "m[1] === \">\""], ["lower === \" \" + term.text", "false"],
    ["d.version !== 1", "false"], ["if (s.reversed)", "if (!s.reversed)"],
        [".toLowerCase(), quoted", ", quoted"]];

function planted() {
    return PLANTED.map(([from, to]) => {
        let noticed = true;
        if (!pure.includes(from)) return [`a fault that is planted no more: ${from}`, false, true];
        try { noticed = all(functionsOf(pure.split(from).join(to))).some(check =>
            !holds(check)) } catch (e) { /* it was */ }
        return [`a fault is noticed: ${from} -> ${to}`, noticed, true];
    });
}

const checks = [...all(functionsOf(pure)), ...colours(), ...text(), ...planted()];
const bad = checks.filter(check => !holds(check));
for (const [name, found, expected] of bad)
    console.log(`FAIL ${name}\n  expected: ${JSON.stringify(expected)}\n  found:    ${JSON.stringify(found)}`);
console.log(`${checks.length - bad.length} passed, ${bad.length} failed`);
process.exit(bad.length ? 1 : 0);
