"""Templates: what Go's templates and the documented functions print."""

from __future__ import annotations

import pytest

from query.logql.template import Labels, Template
from query.logql.template_functions import FUNCTIONS, TemplateError

LABELS = Labels(
    app="web",
    n="7",
    f="2.5",
    took="1m30s",
    size="2KB",
    path="/a/b?x=1",
    json='{"a":{"b":[1,2]},"c":"d"}',
    text=" Hello World ",
)
TS_NS = 1_700_000_000_123_456_789
NOW_NS = 1_700_000_100 * 10**9


def render(text: str) -> str:
    return Template(text).render(LABELS, "the line", TS_NS, NOW_NS)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.app}}/{{ .missing }}|", "web/|"),
        ("a {{- .app -}} b", "awebb"),
        ("{{/* nothing */}}x", "x"),
        ("{{ __line__ }}", "the line"),
        ('{{ "a\\tb" }}{{ `c` }}{{ 1 }}{{ 1.50 }}{{ true }}', "a\tbc11.5true"),
        ("{{ .app | ToUpper | printf `%s-%5s|%-5s|%q` `x` `y` }}", "x-    y|WEB  |%!q(MISSING)"),
        ("{{ printf `%d %05d %+d %.2f %v %x %t %%` 3 42 1 2.5 `s` 255 true }}", "3 00042 +1 2.50 s ff true %"),
        ("{{ if .missing }}a{{ else if eq .app `web` }}b{{ else }}c{{ end }}", "b"),
        ("{{ if and .app (gt 2 1) }}y{{ end }}{{ if or .missing .app }}z{{ end }}{{ if not .app }}w{{ end }}", "yz"),
        ("{{ with .app }}[{{ . }}]{{ end }}{{ with .missing }}x{{ else }}none{{ end }}", "[web]none"),
        ("{{ $x := .app }}{{ $x }}{{ $x | len }}", "web3"),
        ("{{ range $.missing }}a{{ else }}empty{{ end }}", "empty"),
        ("{{ with fromJson .json }}{{ .c }} {{ .a.b }} {{ range .a.b }}<{{ . }}>{{ end }}{{ end }}", "d [1 2] <1><2>"),
        ("{{ index (fromJson .json) `c` }}", "d"),
        (
            "{{ .text | trim | lower }}|{{ .text | TrimSpace | title }}|{{ trimAll `/` `/x/` }}",
            "hello world|Hello World|x",
        ),
        (
            "{{ Replace .path `/` `.` -1 }} {{ .path | replace `/` `-` }} {{ Replace .path `/` `.` 1 }}",
            ".a.b?x=1 -a-b?x=1 .a/b?x=1",
        ),
        (
            "{{ trunc 2 .app }} {{ trunc -2 .app }} {{ substr 1 3 .path }} {{ .path | trimPrefix `/a` }}",
            "we eb a/ /b?x=1",
        ),
        ("{{ contains `e` .app }} {{ hasPrefix `w` .app }} {{ hasSuffix `x` .app }}", "true true false"),
        ("{{ add 1 2 .n }} {{ sub 5 2 }} {{ mul 2 3 4 }} {{ div 7 2 }} {{ mod 7 4 }}", "10 3 24 3 3"),
        ("{{ addf 1.5 .f }} {{ divf 1 4 }} {{ mulf .f 2 }} {{ subf 3 1.5 }}", "4 0.25 5 1.5"),
        (
            "{{ max 1 .n 3 }} {{ min 4 2 }} {{ maxf 1.5 2 }} {{ ceil 1.2 }} {{ floor 1.8 }} {{ round 2.345 2 }}",
            "7 2 2 2 1 2.35",
        ),
        ("{{ int .n }} {{ float64 .f }} {{ int `x` }}", "7 2.5 0"),
        ("{{ duration .took }} {{ duration_seconds .took }} {{ bytes .size }}", "90 90 2000"),
        ("{{ regexReplaceAll `(a)(b?)` `aab` `${1}x$2.` }} {{ regexReplaceAllLiteral `a` `aa` `$1` }}", "ax.axb. $1$1"),
        ("{{ count `a` `banana` }} {{ urlencode .path }} {{ urldecode `a%20b+c` }}", "3 %2Fa%2Fb%3Fx%3D1 a b c"),
        ("{{ b64enc .app }} {{ b64dec `d2Vi` }} {{ default `x` .missing }} {{ .app | default `x` }}", "d2Vi web x web"),
        (
            "{{ alignLeft 5 .app }}|{{ alignRight 5 .app }}|{{ alignLeft 2 .app }}|{{ alignRight 2 .app }}",
            "web  |  web|we|eb",
        ),
        ("{{ indent 2 `a\nb` }}{{ nindent 1 `c` }}{{ repeat 3 `z` }}", "  a\n  b\n czzz"),
        ("{{ __timestamp__ | date `2006-01-02T15:04:05.000Z07:00` }}", "2023-11-14T22:13:20.123Z"),
        (
            "{{ __timestamp__ | date `Jan _2 Mon 3:04PM 06` }} {{ __timestamp__ | unixEpochMillis }}",
            "Nov 14 Tue 10:13PM 23 1700000000123",
        ),
        (
            "{{ (toDate `2006-01-02` `2023-11-14`) | unixEpoch }} {{ unixToTime `1700000000` | unixEpochNanos }}",
            "1699920000 1700000000000000000",
        ),
        ("{{ toDateInZone `2006-01-02 15:04` `Europe/Berlin` `2023-11-14 01:00` | unixEpoch }}", "1699920000"),
        ("{{ now | unixEpoch }}", "1700000100"),
        (
            "{{ eq .app `x` `web` }} {{ ne .app `x` }} {{ lt .app `x` }} {{ ge 2 2 }} {{ le 3 2 }}",
            "true true true true false",
        ),
        ("{{ println .app }}{{ print 1 `a` }} {{ len .app }} {{ slice .app 1 2 }}", "web\n1a 3 e"),
    ],
)
def test_rendered(template: str, text: str) -> None:
    assert render(template) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ nope .x }}",
        "{{ .a",
        "{{ if .a }}x",
        "{{ end }}",
        "{{ }}",
        "{{ define `x` }}{{ end }}",
        "{{ (.a }}",
        "{{ .a .b }}",
    ],
)
def test_refused_when_read(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Template(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ div 1 0 }}",
        "{{ duration `x` }}",
        "{{ eq .app 1 }}",
        "{{ $y }}",
        "{{ index .app `x` }}",
        "{{ toDate `2006` `x` }}",
    ],
)
def test_failures_of_a_line(template: str) -> None:
    with pytest.raises(TemplateError):
        render(template)


def test_every_function_is_documented() -> None:
    from tests.house.test_lint import ROOT

    page = (ROOT / "docs/logql.md").read_text()
    words = set(page.replace("`", " ").replace(",", " ").split())
    assert [name for name in FUNCTIONS if name not in words] == []
