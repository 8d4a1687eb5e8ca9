// One picture, one model, one answer: as JSON for the list, as PNG for the drawing. No library, no storage.
"use strict";

const byId = (id) => document.getElementById(id);
const state = { models: [], picture: null, asked: 0 };

// What the page asks for each option that a model takes.
const FIELDS = {
  prompts: {
    label: "Classes, one per line",
    make: () => textarea("a dog\na cat\na bicycle"),
    pairs: (text) => text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => ["prompts", line]),
  },
  top: {
    label: "How many answers",
    make: () => input({ type: "number", min: 1, max: 1000, placeholder: "as the model likes" }),
    pairs: (text) => (text ? [["top", text]] : []),
  },
  threshold: {
    label: "Least score, 0 to 1",
    make: () => input({ type: "number", min: 0, max: 1, step: 0.05, placeholder: "none" }),
    pairs: (text) => (text ? [["threshold", text]] : []),
  },
};

function input(attributes) {
  return Object.assign(document.createElement("input"), attributes);
}

function textarea(value) {
  return Object.assign(document.createElement("textarea"), { value, spellcheck: false });
}

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function headers(more = {}) {
  const token = byId("token").value;
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function refused(response) {
  if (response.status === 401) {
    byId("access").hidden = false;
    byId("token").focus();
  }
  const body = await response.json().catch(() => ({}));
  return new Error(body.error || `the server answers ${response.status}`);
}

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await refused(response);
  state.models = (await response.json()).models;
  byId("model").replaceChildren(...state.models.map((model) => new Option(model.name, model.name)));
  if (!state.models.length) say("No model is ready yet.", true);
  showModel();
}

function chosenModel() {
  return state.models.find((model) => model.name === byId("model").value);
}

function showModel() {
  const model = chosenModel();
  byId("options").replaceChildren();
  if (!model) return;
  const classes = model.labels ? `, ${model.labels} classes` : "";
  byId("about").textContent = `${model.task.replaceAll("_", " ")}${classes}, on ${model.engine}`;
  for (const [name, field] of Object.entries(FIELDS)) {
    if (!model.options.includes(name)) continue;
    const control = field.make();
    control.id = `option-${name}`;
    const label = Object.assign(document.createElement("label"), { textContent: field.label });
    label.htmlFor = control.id;
    byId("options").append(label, control);
  }
  byId("ask").disabled = !state.picture;
}

function query(model) {
  const pairs = Object.entries(FIELDS)
    .filter(([name]) => model.options.includes(name))
    .flatMap(([name, field]) => field.pairs(byId(`option-${name}`).value));
  return new URLSearchParams(pairs).toString();
}

async function post(model, accept) {
  const path = `v1/models/${encodeURIComponent(model.name)}/predict?${query(model)}`;
  const type = state.picture.type || "application/octet-stream";
  const sent = headers({ Accept: accept, "Content-Type": type });
  const response = await fetch(path, { method: "POST", headers: sent, body: state.picture });
  if (!response.ok) throw await refused(response);
  return response;
}

async function predict() {
  const model = chosenModel();
  if (!model || !state.picture) return;
  const number = ++state.asked;
  say("Looking ...");
  byId("ask").disabled = true;
  try {
    const begun = performance.now();
    const response = await post(model, "application/json");
    const answer = await response.json();
    const milliseconds = Math.max(1, Math.round(performance.now() - begun));
    const drawing = model.overlay ? await (await post(model, "image/png")).blob() : state.picture;
    if (number === state.asked) show(answer, drawing, milliseconds);
  } catch (error) {
    if (number === state.asked) fail(error);
  } finally {
    byId("ask").disabled = !state.picture;
  }
}

function fail(error) {
  say(error.message, true);
  for (const id of ["drawing", "bars", "details"]) byId(id).hidden = true;
}

function rows(answer) {
  if (answer.predictions) return answer.predictions.map((row) => [row.label, row.score]);
  if (answer.detections) return answer.detections.map((row) => [row.label, row.score]);
  if (answer.areas) return answer.areas.map((row) => [row.label, row.share]);
  return [];
}

function bar([label, share]) {
  const item = document.createElement("li");
  const length = Object.assign(document.createElement("progress"), { max: 1, value: share });
  length.setAttribute("aria-hidden", "true");
  const name = Object.assign(document.createElement("span"), { textContent: label });
  const score = Object.assign(document.createElement("span"), {
    className: "score",
    textContent: `${(100 * share).toFixed(1)} %`,
  });
  item.append(length, name, score);
  return item;
}

function show(answer, drawing, milliseconds) {
  const listed = rows(answer);
  const best = listed.length ? `: ${listed[0][0]}` : "";
  const untrained = answer.untrained ? " The model is untrained: its answers mean nothing." : "";
  say(`Answered in ${milliseconds} ms${best}.${untrained}`, Boolean(answer.untrained));
  const image = byId("image");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(drawing);
  image.alt = listed.length
    ? `The picture with its answers: ${listed.slice(0, 5).map(([label]) => label).join(", ")}`
    : "The picture with its answer";
  byId("drawing").hidden = false;
  byId("bars").replaceChildren(...listed.slice(0, 50).map(bar));
  byId("bars").hidden = !listed.length;
  byId("json").textContent = JSON.stringify(answer, null, 2).slice(0, 100000);
  byId("details").hidden = false;
}

function choose(picture) {
  if (!picture) return;
  state.picture = picture;
  byId("chosen").textContent = `${picture.name || "pasted picture"}, ${Math.ceil(picture.size / 1024)} KiB`;
  byId("ask").disabled = !chosenModel();
  predict();
}

function listen() {
  const drop = byId("drop");
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.models.length) predict();
    else loadModels().catch(fail);
  });
  byId("model").addEventListener("change", showModel);
  byId("token").addEventListener("change", () => loadModels().then(() => say("Choose a picture to begin."), fail));
  byId("file").addEventListener("change", (event) => choose(event.target.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") choose(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
}

listen();
loadModels().catch(fail);
