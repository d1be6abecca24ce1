// The web console: read a text, see why, correct a concept, compare.
//
// What a user or the model wrote reaches the page only as text nodes and attribute values, never as HTML.

const PAGE_SIZE = 10;
const TIMEOUT_MS = 60_000;
const KEY_ITEM = "sparsecbm-key";
const UNAUTHORIZED = 401;
const FAINT = 0.3; // a concept's strongest word is drawn at full depth from this share of the answer's strongest

const EXAMPLES = [
  {
    title: "Rude waiter",
    text: "The risotto was rich and perfectly cooked, but our waiter was rude and forgot half of the order.",
  },
  {
    title: "Bland fish",
    text: "Candles, soft music, a lovely old room. The fish was bland, though, and small for the price.",
  },
  {
    title: "Loud birthday",
    text:
      "We had to shout across the table all evening. Still, the food came quickly and the staff could not have " +
      "been kinder.",
  },
  { title: "Says little", text: "Not bad, not memorable. We ate, we paid, we left. 🤷" },
];
const EXAMPLE_CONCEPTS = ["food", "service", "ambiance", "noise"];

const state = {
  key: keptKey(), // the API key, or null where none was given
  card: null, // GET /v1/model, or null where it could not be had
  text: "", // the text of the answer on the page
  answer: null, // that answer
  asked: "", // the text last sent to be read
  newest: 0, // number of the newest request; an older one's answer is ignored
  busy: null, // "reading", "correcting" or null
  next: null, // cursor to the next page of the ledger
  newestPage: 0,
};

const $ = (id) => document.getElementById(id);

// --- Nodes and numbers

/** An element; properties are set on it, strings among the children become text nodes. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("--")) node.style.setProperty(name, String(value));
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const has = (object, name) => Object.prototype.hasOwnProperty.call(object ?? {}, name);
const get = (object, name, otherwise) => (has(object, name) ? object[name] : otherwise);
const clamp = (value) => Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0));
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

function percent(share) {
  if (!Number.isFinite(share)) return "–";
  if (share > 0 && share < 0.005) return "<1 %";
  if (share < 1 && share >= 0.995) return ">99 %";
  return `${Math.round(share * 100)} %`;
}

function signed(number) {
  if (!Number.isFinite(number)) return "–";
  const digits = Math.abs(number) < 0.0995 && number !== 0 ? 3 : 2;
  const size = Math.abs(number).toFixed(digits);
  return Number(size) === 0 ? "0" : `${number < 0 ? "−" : "+"}${size}`;
}

const side = (score) => (score < 0 ? "against" : "for");

// --- The server

/** What went wrong, in words for the user: the server's own where it gave some. */
class Problem extends Error {
  constructor(message, detail, status) {
    super(message);
    this.detail = detail;
    this.status = status;
  }
}

async function call(path, body) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (state.key !== null) headers.authorization = `Bearer ${state.key}`;
  let response;
  let content;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    content = await response.text();
  } catch (error) {
    if (error.name === "TimeoutError") {
      throw new Problem(`The server did not answer within ${TIMEOUT_MS / 1000} seconds. Try again.`);
    }
    throw new Problem("The server could not be reached. Check that it is running, then try again.");
  }
  let message = null;
  try {
    message = JSON.parse(content);
  } catch {
    if (response.ok) throw new Problem("The server's answer could not be read: it is not JSON.");
  }
  if (!response.ok) {
    const error = message?.error;
    throw new Problem(
      typeof error?.message === "string"
        ? error.message
        : `The server refused the request with status ${response.status} and gave no reason.`,
      error?.detail,
      response.status,
    );
  }
  return message;
}

/** The answer to a request's one input; an input that failed has its error in its place. */
function only([answer]) {
  if (answer.error) throw new Problem(answer.error.message, answer.error.detail);
  return answer;
}

function showProblem(error) {
  if (error.status === UNAUTHORIZED) {
    askForKey(error.message);
    return;
  }
  const known = error instanceof Problem;
  if (!known) console.warn("unexpected answer", error);
  const message = known ? error.message : "The server's answer is not of the form that this page reads.";
  const box = $("alert");
  const detail = known ? error.detail : undefined;
  box.replaceChildren(
    el(
      "div",
      {},
      el("p", { dir: "auto" }, message),
      detail === undefined || detail === null
        ? null
        : el("details", {}, el("summary", {}, "Details"), el("pre", {}, asText(detail))),
    ),
    el("button", { type: "button", "aria-label": "Dismiss", onclick: clearProblem }, "×"),
  );
  box.hidden = false;
  $("status").textContent = "";
}

function clearProblem() {
  $("alert").hidden = true;
  $("alert").replaceChildren();
}

// --- The key

// A tab's own storage: no other tab, and nothing after the tab is closed, has the key. A browser may forbid it.
function keptKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM);
  } catch {
    return null;
  }
}

function keepKey(key) {
  state.key = key;
  $("forget-key").hidden = key === null;
  try {
    if (key === null) sessionStorage.removeItem(KEY_ITEM);
    else sessionStorage.setItem(KEY_ITEM, key);
  } catch {
    // It lasts until the page is left.
  }
}

function askForKey(words) {
  keepKey(null);
  $("key-words").textContent = words;
  $("key").hidden = false;
  $("key-field").focus();
  $("status").textContent = "";
}

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

// --- Parts of an answer

/** One line per name: the name, a bar from 0 to 1, the share in per cent. */
function shareBars(shares, order, chosen, caption) {
  return el(
    "ul",
    { class: "bars", "aria-label": caption },
    order.map((name) =>
      el(
        "li",
        { class: name === chosen ? "chosen" : null },
        el("span", { class: "bar-name", dir: "auto", title: name }, name),
        el(
          "span",
          { class: "track", "aria-hidden": "true" },
          el("span", { class: "fill", "--v": clamp(get(shares, name, 0)) }),
        ),
        el("span", { class: "number" }, percent(get(shares, name, NaN))),
      ),
    ),
  );
}

/** A bar that grows from the middle: to the right for, to the left against. */
function divergingBar(score, largest) {
  return el(
    "span",
    { class: `diverging ${side(score)}`, "aria-hidden": "true" },
    el("span", { class: "fill", "--v": largest > 0 ? clamp(Math.abs(score) / largest) : 0 }),
  );
}

/**
 * The text, with each token marked by its score relative to the largest.
 *
 * Offsets count code points, as Python does; JavaScript's own indices count UTF-16 units, so the text is
 * split into code points first.
 */
function markedText(text, tokens, largest) {
  const points = Array.from(text);
  const parts = [];
  let done = 0;
  for (const token of [...tokens].sort((a, b) => a.start - b.start)) {
    const start = Math.max(token.start, done);
    const end = Math.min(token.end, points.length);
    if (start >= end) continue;
    const strength = largest > 0 ? Math.abs(token.score) / largest : 0;
    if (strength < 0.04) continue;
    if (start > done) parts.push(points.slice(done, start).join(""));
    parts.push(
      el(
        "mark",
        { class: side(token.score), "--v": clamp(strength), title: signed(token.score) },
        points.slice(start, end).join(""),
      ),
    );
    done = end;
  }
  parts.push(points.slice(done).join(""));
  return el("p", { class: "text marked", dir: "auto" }, parts);
}

const largestToken = (tokens) => Math.max(0, ...(tokens ?? []).map((token) => Math.abs(token.score)));

function strongestWords(tokens) {
  const strongest = [...tokens].sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, 5);
  return `Strongest: ${strongest.map((token) => `${token.text} ${signed(token.score)}`).join(", ")}`;
}

const UNIT_KINDS = [
  ["head", "Attention heads"],
  ["neuron", "Neurons"],
];

function unitTable(units) {
  const largest = Math.max(0, ...units.map((unit) => Math.abs(unit.score)));
  const layers = [...new Set(units.map((unit) => unit.layer))].sort((a, b) => b - a);
  const chip = (unit) =>
    el(
      "li",
      { class: side(unit.score), "--v": largest > 0 ? clamp(Math.abs(unit.score) / largest) : 0 },
      `${unit.index} `,
      el("span", { class: "number" }, signed(unit.score)),
    );
  const cell = (layer, kind) => {
    const found = units.filter((unit) => unit.layer === layer && unit.kind === kind);
    return el("td", {}, found.length ? el("ul", { class: "units" }, found.map(chip)) : "–");
  };
  return el(
    "table",
    { class: "unit-table" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "Layer"),
        UNIT_KINDS.map(([, title]) => el("th", { scope: "col" }, title)),
      ),
    ),
    el(
      "tbody",
      {},
      layers.map((layer) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, String(layer)),
          UNIT_KINDS.map(([kind]) => cell(layer, kind)),
        ),
      ),
    ),
  );
}

function labelOrder(answer) {
  const known = state.card?.labels;
  return Array.isArray(known) && known.length ? known : Object.keys(answer.probabilities);
}

function valueOrder(concept) {
  const known = state.card?.concepts?.find((one) => one.name === concept.name)?.values;
  return Array.isArray(known) && known.length ? known : Object.keys(concept.probabilities);
}

function labelBox(answer, title, flipped = false) {
  return el(
    "div",
    { class: "label-box" },
    el(
      "p",
      { class: "verdict" },
      el("span", { class: "help" }, title),
      el("strong", { dir: "auto" }, answer.label.value),
      el("span", { class: "number" }, percent(answer.label.probability)),
      flipped ? el("span", { class: "badge flipped" }, "flipped") : null,
    ),
    shareBars(answer.probabilities, labelOrder(answer), answer.label.value, `${title}: probability of each label`),
  );
}

function conceptCard(concept, answer, text, largest) {
  const label = answer.label.value;
  const contribution = get(concept.contributions, label, NaN);
  const tokens = concept.tokens ?? [];
  return el(
    "article",
    { class: "concept", "aria-label": `Concept ${concept.name}` },
    el(
      "h3",
      {},
      el("span", { dir: "auto" }, concept.name),
      " ",
      el("span", { class: "value", dir: "auto" }, concept.value),
    ),
    shareBars(concept.probabilities, valueOrder(concept), concept.value, `${concept.name}: probability of each value`),
    tokens.length
      ? [
          // Where nothing spoke strongly, faint words must not look strong: hence the share of the answer's largest.
          markedText(text, tokens, Math.max(largestToken(tokens), FAINT * largest.token)),
          el("p", { class: "unseen" }, strongestWords(tokens)),
        ]
      : null,
    el(
      "details",
      { class: "contribution" },
      el(
        "summary",
        {},
        el("span", { class: "grow" }, `Contribution to label ${label}`),
        divergingBar(contribution, largest.chosen),
        el("span", { class: "number" }, signed(contribution)),
      ),
      el("p", { class: "help" }, "How far this concept pushes each label up (right) or down (left)."),
      el(
        "ul",
        { class: "bars" },
        labelOrder(answer).map((name) => {
          const score = get(concept.contributions, name, NaN);
          return el(
            "li",
            { class: name === label ? "chosen" : null },
            el("span", { class: "bar-name", dir: "auto", title: name }, name),
            divergingBar(score, largest.any),
            el("span", { class: "number" }, signed(score)),
          );
        }),
      ),
    ),
    concept.subnetwork
      ? el(
          "details",
          { class: "subnetwork" },
          el(
            "summary",
            {},
            el("span", { class: "grow" }, "Subnetwork"),
            el("span", { class: "number" }, `${percent(concept.subnetwork.density)} of units`),
          ),
          el(
            "p",
            { class: "help" },
            "The units of the network that spoke most for (+) or against (−) this value, by number and score.",
          ),
          unitTable(concept.subnetwork.units),
        )
      : null,
  );
}

/** Lets the keyboard reach texts that are too long to be shown whole. */
function makeScrollable(nodes) {
  for (const node of nodes) if (node.scrollHeight > node.clientHeight + 1) node.tabIndex = 0;
}

// --- Reading a text

function showAnswer(answer, text) {
  const scores = answer.concepts.flatMap((concept) => Object.values(concept.contributions));
  const chosen = answer.concepts.map((concept) => get(concept.contributions, answer.label.value, 0));
  const largest = {
    any: Math.max(0, ...scores.map(Math.abs)),
    chosen: Math.max(0, ...chosen.map(Math.abs)),
    token: Math.max(0, ...answer.concepts.map((concept) => largestToken(concept.tokens))),
  };
  const cards = answer.concepts.map((concept) => conceptCard(concept, answer, text, largest));
  $("answer-body").replaceChildren(
    ...[
      answer.truncated
        ? el("p", { class: "notice" }, "The text is longer than the model reads: its end was left out of this answer.")
        : null,
      labelBox(answer, "Label"),
      el(
        "p",
        { class: "legend help" },
        "Words that speak ",
        el("mark", { class: "for", "--v": 0.7 }, "for"),
        " or ",
        el("mark", { class: "against", "--v": 0.7 }, "against"),
        " each concept’s value; the stronger, the deeper.",
      ),
      el("div", { class: "concepts" }, cards),
    ].filter(Boolean),
  );
  $("intro").hidden = true;
  $("compare").hidden = true;
  $("answer-title").textContent = "The answer, and why";
  $("answer").hidden = false;
  makeScrollable($("answer-body").querySelectorAll(".marked"));
}

function showCorrectionForm(answer) {
  const rows = answer.concepts.map((concept, at) =>
    el(
      "div",
      { class: "field row correction" },
      el("label", { for: `correct-${at}`, dir: "auto" }, concept.name),
      el(
        "select",
        { id: `correct-${at}`, "data-concept": concept.name, onchange: markChosen },
        el("option", { value: "" }, `${concept.value}, as read`),
        valueOrder(concept).map((value, index) => el("option", { value: String(index + 1) }, value)),
      ),
    ),
  );
  $("corrections").replaceChildren(...rows);
  $("note").value = "";
  const first = answer.ask_next?.[0];
  const at = answer.concepts.findIndex((concept) => concept.name === first?.concept);
  $("ask-next").hidden = at < 0 || !(first.gain > 0);
  if (!$("ask-next").hidden) {
    $("ask-next").replaceChildren(
      "Worth checking first: ",
      el("button", { type: "button", class: "link", onclick: () => $(`correct-${at}`).focus() }, first.concept),
      el("span", { class: "help" }, `Your word is expected to move the label by ${percent(first.gain)}.`),
    );
  }
  $("correct").hidden = false;
}

function markChosen(event) {
  event.target.closest(".correction").classList.toggle("changed", event.target.value !== "");
}

async function read() {
  const text = $("text").value;
  if (!text.trim()) {
    showProblem(new Problem("There is nothing to read yet: write or paste a text, or take an example."));
    $("text").focus();
    return;
  }
  state.asked = text;
  const number = begin("reading");
  try {
    const response = await call("v1/predict", { inputs: [text], explain: ["tokens", "subnetwork"] });
    if (number !== state.newest) return;
    const answer = only(response.predictions);
    showAnswer(answer, text);
    showCorrectionForm(answer);
    state.text = text;
    state.answer = answer;
    announce(`Label ${answer.label.value}, ${percent(answer.label.probability)}. ${conceptsInWords(answer)}`);
  } catch (error) {
    if (number === state.newest) showProblem(error);
  } finally {
    end(number);
  }
}

const conceptsInWords = (answer) =>
  answer.concepts.map((concept) => `${concept.name}: ${concept.value}`).join(", ") + ".";

// --- Correcting it

function chosenCorrections() {
  const chosen = [];
  for (const select of $("corrections").querySelectorAll("select")) {
    if (select.value !== "") chosen.push([select.dataset.concept, select.selectedOptions[0].textContent]);
  }
  return Object.fromEntries(chosen);
}

async function correct() {
  const corrections = chosenCorrections();
  if (!Object.keys(corrections).length) {
    showProblem(new Problem("Nothing is corrected yet: choose the value that a concept should have."));
    $("corrections").querySelector("select")?.focus();
    return;
  }
  const note = $("note").value.trim();
  const input = { text: state.text, corrections, level: new FormData($("correct-form")).get("level") };
  if (note) input.note = note;
  const number = begin("correcting");
  try {
    const response = await call("v1/intervene", { inputs: [input], record: true });
    showRecent(); // recorded, even where its answer is no longer wanted
    if (number !== state.newest) return;
    const outcome = only(response.interventions);
    showComparison(outcome);
    announce(`Answered again. ${changesInWords(outcome)}`);
    $("compare").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (number === state.newest) showProblem(error);
  } finally {
    end(number);
  }
}

const conceptIn = (answer, name) => answer.concepts.find((concept) => concept.name === name);

function changesInWords(outcome) {
  const { before, after, flipped } = outcome;
  const label = flipped.label
    ? `Label ${before.label.value} → ${after.label.value}`
    : `The label stays ${after.label.value}`;
  const moved = after.label.probability - get(before.probabilities, after.label.value, NaN);
  const points = Math.round(moved * 100);
  const shift =
    flipped.label || !points ? "" : ` (${points > 0 ? "+" : "−"}${count(Math.abs(points), "point")})`;
  const concepts = flipped.concepts.map(
    (name) => `${name} ${conceptIn(before, name)?.value ?? "?"} → ${conceptIn(after, name)?.value ?? "?"}`,
  );
  return `${label}${shift}; ${concepts.length ? concepts.join(", ") : "no concept changed its value"}.`;
}

function showComparison(outcome) {
  const { before, after, flipped } = outcome;
  const missed = Object.entries(outcome.corrections)
    .filter(([name, value]) => conceptIn(after, name)?.value !== value)
    .map(([name]) => name);
  $("compare-body").replaceChildren(
    ...[
      el(
        "div",
        { class: "summary" },
        el("p", { dir: "auto" }, changesInWords(outcome)),
        el(
          "p",
          { class: "help" },
          outcome.level === "mask" ? "Mask level" : "Concept level",
          " · ",
          outcome.id === null || outcome.id === undefined
            ? "not recorded"
            : [
                "in the ledger as ",
                // A link sends no key.
                state.key === null
                  ? el("a", { href: `v1/interventions/${encodeURIComponent(outcome.id)}` }, outcome.id)
                  : el("code", {}, outcome.id),
              ],
        ),
      ),
      outcome.reached
        ? null
        : el(
            "p",
            { class: "notice warning" },
            `The edit was not enough: ${missed.length ? missed.join(", ") : "a corrected concept"} still does not read ` +
              "as you said. Concept level sets your value outright.",
          ),
      el(
        "div",
        { class: "beside" },
        labelBox(before, "Before"),
        labelBox(after, "After", flipped.label),
        comparedConcepts(outcome),
      ),
      outcome.level === "mask" ? editsPart(outcome.edits) : null,
    ].filter(Boolean),
  );
  $("compare").hidden = false;
  $("answer-title").textContent = "Before your correction: what spoke for each concept";
}

function comparedConcepts({ before, after, corrections, flipped }) {
  const reading = (concept) =>
    el(
      "td",
      {},
      el("span", { class: "value", dir: "auto" }, concept?.value ?? "–"),
      " ",
      el("span", { class: "number" }, percent(concept?.probability ?? NaN)),
    );
  const row = (concept) => {
    const turned = flipped.concepts.includes(concept.name);
    return el(
      "tr",
      { class: turned ? "flipped" : null },
      el(
        "th",
        { scope: "row" },
        el("span", { dir: "auto" }, concept.name),
        has(corrections, concept.name) ? el("span", { class: "badge" }, "corrected") : null,
        turned ? el("span", { class: "badge flipped" }, "flipped") : null,
      ),
      reading(conceptIn(before, concept.name)),
      reading(concept),
    );
  };
  return el(
    "table",
    { class: "compared" },
    el("caption", { class: "unseen" }, "Concepts before and after"),
    el(
      "thead",
      {},
      el("tr", {}, ["Concept", "Before", "After"].map((title) => el("th", { scope: "col" }, title))),
    ),
    el("tbody", {}, after.concepts.map(row)),
  );
}

/** What a mask-level correction edited: counts per concept and layer, and every unit on demand. */
function editsPart(edits) {
  if (!edits.length) return el("p", { class: "help" }, "No unit had to be edited.");
  const groups = new Map();
  for (const edit of edits) {
    const key = JSON.stringify([edit.concept, edit.layer]);
    if (!groups.has(key)) groups.set(key, { concept: edit.concept, layer: edit.layer, edits: [] });
    groups.get(key).edits.push(edit);
  }
  const sorted = [...groups.values()].sort((a, b) => (a.concept === b.concept ? a.layer - b.layer : 0));
  const tally = (list, change) => list.filter((edit) => edit.change === change).length;
  const listing = (list, kind, change) => {
    const found = list.filter((edit) => edit.kind === kind && edit.change === change);
    const indices = found.map((edit) => edit.index).sort((a, b) => a - b);
    return indices.length ? el("li", {}, `${change} ${kind}s: ${indices.join(", ")}`) : null;
  };
  return el(
    "div",
    { class: "edits" },
    el(
      "p",
      {},
      el("strong", {}, "Subnetwork edited: "),
      `${count(tally(edits, "dropped"), "unit")} dropped, ${tally(edits, "grown")} grown. `,
      el("span", { class: "help" }, "Dropped units no longer take part in the concept; grown ones now do."),
    ),
    el(
      "ul",
      { class: "edit-counts" },
      sorted.map((group) =>
        el(
          "li",
          {},
          el("span", { dir: "auto" }, group.concept),
          `, layer ${group.layer}: ${tally(group.edits, "dropped")} dropped, ${tally(group.edits, "grown")} grown`,
        ),
      ),
    ),
    el(
      "details",
      {},
      el("summary", {}, "Every edited unit"),
      sorted.map((group) => [
        el("h4", { dir: "auto" }, `${group.concept}, layer ${group.layer}`),
        el(
          "ul",
          { class: "edit-list" },
          ["dropped", "grown"].flatMap((change) => UNIT_KINDS.map(([kind]) => listing(group.edits, kind, change))),
        ),
      ]),
    ),
  );
}

// --- The ledger

async function showRecent(after = null) {
  const number = ++state.newestPage;
  const query = new URLSearchParams({ limit: String(PAGE_SIZE) });
  if (after !== null) query.set("after", after);
  $("more").disabled = true;
  try {
    const page = await call(`v1/interventions?${query}`);
    if (number !== state.newestPage) return;
    const items = page.interventions.map(recordItem);
    if (after === null) $("recent-list").replaceChildren(...items);
    else $("recent-list").append(...items);
    state.next = page.next;
    $("more").hidden = page.next === null || page.next === undefined;
    $("recent-empty").hidden = $("recent-list").childElementCount > 0;
    makeScrollable($("recent-list").querySelectorAll(".record-text"));
    if (after !== null) items[0]?.focus();
  } catch (error) {
    if (number === state.newestPage) showProblem(error);
  } finally {
    if (number === state.newestPage) $("more").disabled = false;
  }
}

function recordItem(record) {
  const { before, after, corrections, level, reached, flipped } = record.outcome;
  const time = new Date(record.created_at);
  const readable = Number.isNaN(time.getTime())
    ? record.created_at
    : time.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  return el(
    "li",
    { tabindex: "-1" },
    el(
      "p",
      { class: "record-head" },
      el("time", { datetime: record.created_at, class: "help" }, readable),
      el("span", { class: "badge" }, `${level} level`),
      reached ? null : el("span", { class: "badge warning" }, "not reached"),
      el(
        "span",
        { class: `turn${flipped.label ? " flipped" : ""}` },
        "label ",
        el("strong", { dir: "auto" }, before.label.value),
        " → ",
        el("strong", { dir: "auto" }, after.label.value),
      ),
    ),
    record.text === null
      ? el("p", { class: "help" }, "The text is not kept, only its hash.")
      : el("p", { class: "text record-text", dir: "auto" }, record.text),
    el(
      "ul",
      { class: "record-corrections" },
      Object.entries(corrections).map(([name, value]) => {
        const was = conceptIn(before, name)?.value;
        return el(
          "li",
          {},
          el("span", { class: "help", dir: "auto" }, name),
          " ",
          was === undefined || was === value ? null : [el("s", { dir: "auto" }, was), " "],
          el("strong", { dir: "auto" }, value),
        );
      }),
    ),
    record.note ? el("p", { class: "record-note", dir: "auto" }, record.note) : null,
  );
}

// --- The model card

/** Every figure in a nested object, as [path, text]. */
function figures(value, path = []) {
  if (typeof value === "number") {
    return [[path.join(" · "), Number.isInteger(value) ? String(value) : value.toFixed(3)]];
  }
  if (typeof value === "string") return [[path.join(" · "), value]];
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [];
  return Object.entries(value).flatMap(([name, inner]) => figures(inner, [...path, name.replaceAll("_", " ")]));
}

const DENSITY = "the share of units that a concept’s subnetwork keeps";

async function showCard() {
  try {
    state.card = await call("v1/model");
  } catch (error) {
    showProblem(error);
  }
  const card = state.card ?? {};
  const concepts = Array.isArray(card.concepts) ? card.concepts : [];
  const labels = Array.isArray(card.labels) ? card.labels : [];
  if (card.name) {
    $("model-name").textContent = card.name;
    document.title = `${card.name} · SparseCBM`;
  }
  $("model-facts").replaceChildren(
    ...[
      card.version ? el("code", { title: `version ${card.version}` }, String(card.version).slice(0, 8)) : null,
      concepts.length ? el("span", {}, count(concepts.length, "concept")) : null,
      labels.length ? el("span", {}, count(labels.length, "label")) : null,
      typeof card.branch_density === "number"
        ? el("span", { title: DENSITY }, `density ${percent(card.branch_density)}`)
        : null,
    ].filter(Boolean),
  );
  const facts = [
    ["description", card.description],
    ["version", card.version],
    ["density", Number.isFinite(card.branch_density) ? `${percent(card.branch_density)}: ${DENSITY}` : null],
    ["backbone", card.backbone?.name],
    ["precision", card.precision],
    ["reads at most", Number.isFinite(card.max_tokens) ? `${card.max_tokens} tokens` : null],
    ["labels", labels.join(", ")],
    ...concepts.map((concept) => [`concept ${concept.name}`, (concept.values ?? []).join(", ")]),
    ...figures(card.evaluation ?? {}, ["evaluation"]),
  ].filter(([, value]) => value);
  $("card").replaceChildren(
    ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, String(value)))),
  );
  $("about").hidden = !facts.length;
  $("examples").hidden = !concepts.some((concept) => EXAMPLE_CONCEPTS.includes(concept.name));
}

// --- The page

function begin(busy) {
  clearProblem();
  state.busy = busy;
  announce(busy === "reading" ? "Reading…" : "Answering again…");
  refresh();
  return ++state.newest;
}

function end(number) {
  if (number !== state.newest) return;
  state.busy = null;
  refresh();
}

function announce(words) {
  $("status").textContent = words;
}

/** Brings the controls in line with the state. */
function refresh() {
  const edited = state.answer !== null && $("text").value !== state.text;
  setDisabled($("read"), state.busy !== null);
  setDisabled($("apply"), state.busy !== null || edited);
  $("read").textContent = state.busy === "reading" ? "Reading…" : "Read it";
  $("apply").textContent = state.busy === "correcting" ? "Answering again…" : "Correct and answer again";
  $("result").setAttribute("aria-busy", String(state.busy !== null));
  $("stale").hidden = !edited;
}

let lostFocus = null;

/** Disabling a button drops the keyboard's focus from it; enabling it again gives it back. */
function setDisabled(button, disabled) {
  if (disabled && document.activeElement === button) lostFocus = button;
  button.disabled = disabled;
  if (!disabled && lostFocus === button) {
    if (document.activeElement === document.body || document.activeElement === button) {
      button.focus({ preventScroll: true });
    }
    lostFocus = null;
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key-field").value);
  $("key-field").value = "";
  $("key").hidden = true;
  showCard();
  showRecent();
});
$("forget-key").addEventListener("click", () => {
  keepKey(null);
  location.reload(); // what only the key showed goes too
});
$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.busy === null) read();
});
$("text").addEventListener("input", refresh);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (state.busy !== "reading" || $("text").value !== state.asked) read(); // a changed text goes first
  }
});
$("correct-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.busy === null && !$("apply").disabled) correct();
});
$("about").addEventListener("click", () => {
  $("card").hidden = !$("card").hidden;
  $("about").setAttribute("aria-expanded", String(!$("card").hidden));
});
$("more").addEventListener("click", () => showRecent(state.next));
$("examples-list").append(
  ...EXAMPLES.map((example) =>
    el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            $("text").value = example.text;
            read();
          },
        },
        example.title,
      ),
    ),
  ),
);
$("forget-key").hidden = state.key === null;
showCard();
showRecent();
