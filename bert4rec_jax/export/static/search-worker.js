// SPDX-License-Identifier: Apache-2.0
// Titles are searched beside the page, so that typing never waits for it.

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
