// SPDX-License-Identifier: Apache-2.0
// Runs the model in a worker: takes a history of item numbers, returns the best items or reasons for them.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
// Threads require headers that a plain file server does not send.
ort.env.wasm.numThreads = 1;

const MOST_LEFT_OUT = 24;
// This call fails, but only after compiling the runtime, which thereby runs during the downloads.
const compiled = ort.InferenceSession.create(new Uint8Array(8)).catch(() => {});
let session = null;
const waiting = {list: null, why: null}; // the newest request of each kind; older ones are dropped
let busy = true; // loading the model

self.onmessage = async ({data}) => {
  if (data.load) {
    try {
      const bytes = await fetched(data.load, data.bytes);
      await compiled;
      session = await ort.InferenceSession.create(bytes, {logSeverityLevel: 3, graphOptimizationLevel: "disabled"});
      // The first run is slow, because the browser compiles the code. Use a waiting request or any history.
      if (!waiting.list) await run([[1]], 1, ["items"]);
      self.postMessage({ready: true});
      await processRequests();
    } catch (error) {
      self.postMessage({failed: String(error?.message ?? error)});
    }
    return;
  }
  waiting[data.kind] = data;
  if (data.kind === "list") waiting.why = null;
  if (!busy) await processRequests();
};

/** Processes requests until none is waiting. */
async function processRequests() {
  busy = true;
  try {
    while (waiting.list || waiting.why) {
      const kind = waiting.list ? "list" : "why";
      const request = waiting[kind];
      waiting[kind] = null;
      self.postMessage(await (kind === "list" ? list(request) : why(request)));
      await new Promise((resolve) => setTimeout(resolve)); // lets newer requests arrive
    }
  } catch (error) {
    self.postMessage({failed: String(error?.message ?? error)});
  } finally {
    busy = false;
  }
}

/** Downloads the model and reports progress. */
async function fetched(url, bytes) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is missing (${response.status})`);
  const parts = new Uint8Array(bytes);
  let done = 0;
  let reported = 0;
  for (const reader = response.body.getReader(); ;) {
    const {value, done: finished} = await reader.read();
    if (finished) return parts.subarray(0, done);
    if (done + value.length > bytes) throw new Error(`${url} is larger than the page expects; export it again`);
    parts.set(value, done);
    done += value.length;
    if (done - reported > bytes / 20 || done === bytes) {
      reported = done;
      self.postMessage({loaded: done / bytes});
    }
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

/** For each item: the decrease of its log-probability if one item of the history is removed. */
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
