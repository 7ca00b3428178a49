// SPDX-License-Identifier: Apache-2.0
// Searches titles in a worker, so that typing never waits for a search.

import {TitleSearch} from "./search.js";

let search = null;
self.onmessage = ({data}) => {
  if (data.titles) {
    search = new TitleSearch(data.titles, data.years, data.weights);
    self.postMessage({ready: true});
  } else {
    self.postMessage({id: data.id, found: search.find(data.text, data.limit)});
  }
};
