// SPDX-License-Identifier: Apache-2.0
// The model, beside the page: a history of item numbers in, the best items or reasons for them out.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
// Threads need headers that a plain file server does not send.
ort.env.wasm.numThreads = 1;

const MOST_LEFT_OUT = 24;
// Fails, but not before the runtime is compiled, which so begins at once, beside all downloads.
const compiled = ort.InferenceSession.create(new Uint8Array(8)).catch(() => {});
let session = null;
const waiting = {list: null, why: null}; // of each kind only the newest question counts
let busy = true; // at first with loading

self.onmessage = async ({data}) => {
  if (data.load) {
    try {
      const bytes = await fetched(data.load, data.bytes);
      await compiled;
      session = await ort.InferenceSession.create(bytes, {logSeverityLevel: 3, graphOptimizationLevel: "disabled"});
      // The first run is slow, as the browser compiles what it meets: a list that somebody waits for, else any.
      if (!waiting.list) await run([[1]], 1, ["items"]);
      self.postMessage({ready: true});
      await answer();
    } catch (error) {
      self.postMessage({failed: String(error?.message ?? error)});
    }
    return;
  }
  waiting[data.kind] = data;
  if (data.kind === "list") waiting.why = null;
  if (!busy) await answer();
};

/** Answers what is asked until nothing is left. */
async function answer() {
  busy = true;
  try {
    while (waiting.list || waiting.why) {
      const kind = waiting.list ? "list" : "why";
      const question = waiting[kind];
      waiting[kind] = null;
      self.postMessage(await (kind === "list" ? list(question) : why(question)));
      await new Promise((resolve) => setTimeout(resolve)); // lets newer questions in
    }
  } catch (error) {
    self.postMessage({failed: String(error?.message ?? error)});
  } finally {
    busy = false;
  }
}

/** Downloads the model, and says how far it is. */
async function fetched(url, bytes) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is missing (${response.status})`);
  const parts = new Uint8Array(bytes);
  let done = 0;
  let said = 0;
  for (const reader = response.body.getReader(); ;) {
    const {value, done: finished} = await reader.read();
    if (finished) return parts.subarray(0, done);
    if (done + value.length > bytes) throw new Error(`${url} is larger than the page expects; export it again`);
    parts.set(value, done);
    done += value.length;
    if (done - said > bytes / 20 || done === bytes) self.postMessage({loaded: (said = done) / bytes});
  }
}

function run(rows, k, outputs) {
  const length = Math.max(...rows.map((row) => row.length));
  const history = new Int32Array(rows.length * length);
  rows.forEach((row, i) => history.set(row, (i + 1) * length - row.length)); // zeros on the left
  return session.run({history: new ort.Tensor("int32", history, [rows.length, length]),
    k: new ort.Tensor("int64", [BigInt(k)], [1])}, outputs);
}

async function list({id, history, k}) {
  const began = performance.now();
  const {items, scores, probabilities} = await run([history], k, ["items", "scores", "probabilities"]);
  const best = [...items.data].map((item, i) => ({item: Number(item), probability: probabilities.data[i],
    score: scores.data[i]})).filter((entry) => entry.score > -1e8);
  return {kind: "list", id, best, milliseconds: performance.now() - began};
}

/** For each item: how much its log-probability falls when one item of the history is left out. */
async function why({id, history, items}) {
  const distinct = [...new Set(history)].slice(-MOST_LEFT_OUT);
  if (distinct.length < 2) return {kind: "why", id, leftOut: [], changes: []};
  const rows = [history, ...distinct.map((item) => history.filter((other) => other !== item))];
  const out = await run(rows, 1, ["scores", "probabilities", "all_scores"]);
  const columns = out.all_scores.dims[1];
  const logTotal = (row) => out.scores.data[row] - Math.log(out.probabilities.data[row]);
  const logProbability = (row, item) => out.all_scores.data[row * columns + item] - logTotal(row);
  const changes = items.map((item) => distinct.map((_, j) => logProbability(0, item) - logProbability(j + 1, item)));
  return {kind: "why", id, leftOut: distinct, changes};
}
