"""``/health``: services, endpoints, reasons and events for a person to watch; one page that asks the API, no build."""

from __future__ import annotations

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>meshpulse health</title>
<meta name="viewport" content="width=device-width">
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2733}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600;color:#5b6b7c}
td,th{padding:.25rem .8rem .25rem 0;vertical-align:top;border-bottom:1px solid #e4e9ee}
.s{display:inline-block;min-width:5.5rem;text-align:center;border-radius:.6rem;padding:0 .5rem;background:#e4e9ee}
.healthy{background:#cdeed6}.suspect{background:#fdeeb5}.ejected{background:#f7c4c0}
.probation,.ramp{background:#cfe2fb}small{color:#5b6b7c}code{font-size:.9em}#stale{color:#b3261e}
</style>
<h1>meshpulse health <small id="revision"></small> <small id="stale"></small></h1>
<div id="services">Nothing is judged yet: no series match <code>health.mappings</code>.</div>
<h2>Events</h2><table><tbody id="events"></tbody></table>
<script>
const el = (name, text, kind) => {
  const e = document.createElement(name);
  if (text !== undefined) e.textContent = text;
  if (kind) e.className = kind;
  return e;
};
const row = (cells) => {
  const tr = el("tr");
  for (const c of cells) { const td = el("td"); td.append(c); tr.append(td); }
  return tr;
};
const counts = (e) => e && e.attempts !== undefined ? e.errors + " of " + e.attempts : "";
const time = (t) => t ? t.slice(11, 19) : "";
function show(data, services) {
  document.getElementById("revision").textContent = "revision " + data.revision + ", data of " + time(data.data_as_of);
  const box = document.getElementById("services");
  if (services.length) box.replaceChildren();
  for (const s of services) {
    const notes = [s.mode, s.endpoints + " endpoints"];
    notes.push(s.observers.reporting + " of " + s.observers.known + " observers");
    if (s.frozen) notes.push("frozen: data are not fresh");
    if (s.incident) notes.push("incident: " + s.incident);
    const h = el("h2", s.service + " ");
    h.append(el("small", notes.join(" · ")));
    const table = el("table"), head = el("tr");
    for (const name of ["endpoint", "zone", "state", "weight", "since", "until", "why"]) head.append(el("th", name));
    table.append(head);
    for (const e of data.endpoints.filter((e) => e.service === s.service))
      table.append(row([el("code", e.endpoint), e.locality.zone, el("span", e.state, "s " + e.state),
        Math.round(100 * e.weight_factor) + " %", time(e.since), time(e.until),
        e.reason + (e.guards.blocked ? " (held back by " + e.guards.blocked_by + ")" : "")]));
    box.append(h, table);
  }
}
async function get(path) {
  const reply = await fetch("api/v1/health/" + path);
  if (!reply.ok) throw new Error(reply.status);
  return (await reply.json()).data;
}
async function look() {
  try {
    const [data, services, events] = await Promise.all([get("endpoints"), get("services"), get("events?limit=40")]);
    show(data, services.services);
    document.getElementById("events").replaceChildren(...events.events.reverse().map((e) =>
      row([time(e.time), el("b", e.type + (e.guard ? " by " + e.guard : "")), e.service, el("code", e.endpoint || ""),
        e.mode || e.by || "", counts(e.evidence)])));
    document.getElementById("stale").textContent = "";
  } catch (error) {
    document.getElementById("stale").textContent = "no answer (" + error.message + ")";
  }
  setTimeout(look, 1000);
}
look();
</script></html>
"""
