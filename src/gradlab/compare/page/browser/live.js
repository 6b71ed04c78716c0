"use strict";
// A page that is served asks its server for news; a page from a file never asks anybody.

const ASK_EVERY = 1000; // milliseconds

const Live = {
  stamp: "",

  start() {
    if (document.body.dataset.live !== "true") return;
    this.state = document.getElementById("live");
    this.state.hidden = false;
    this.stamp = Store.data.stamp;
    this.at = new Date().toLocaleTimeString();
    this.ask();
  },

  /** Asks once, takes what is new, and asks again a second after the answer. */
  async ask() {
    try {
      const news = await this.get("/news");
      this.drawPicker(news.runs);
      if (news.stamp !== this.stamp) {
        await this.take();
        this.at = new Date().toLocaleTimeString();
      }
      this.tell("fresh", `live, last change ${this.at}`);
    } catch (error) {
      this.tell("lost", `no news: ${error.message}`);
    }
    setTimeout(() => this.ask(), ASK_EVERY);
  },

  async get(path) {
    const answer = await fetch(path + location.search, { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  },

  async take() {
    const none = !Store.runs.length;
    await Store.take(await this.get("/data"));
    this.stamp = Store.data.stamp;
    if (none) firstView(); // the page came before there were runs
    drawWords();
    draw(false);
  },

  tell(kind, words) {
    this.state.className = kind;
    fill(this.state, words);
  },

  /** All runs of the folders that are served, newest first, to choose from. */
  drawPicker(runs) {
    const text = JSON.stringify(runs);
    if (text === this.listed) return;
    this.listed = text;
    const place = document.getElementById("picker");
    place.hidden = false;
    const open = place.querySelector("details")?.open ?? false;
    const boxes = new Map();
    const list = element("ul", {});
    for (const run of runs) {
      const box = element("input", { type: "checkbox", checked: run.chosen });
      boxes.set(run.id, box);
      const words = [run.id, run.words, run.status].filter(Boolean).join("  ·  ");
      list.append(element("li", { "data-words": words.toLowerCase() }, element("label", {}, box, " ", words)));
    }
    const search = element("input", { type: "search", placeholder: "find in the list" });
    search.addEventListener("input", () => {
      for (const item of list.children) item.hidden = !item.dataset.words.includes(search.value.toLowerCase());
    });
    const all = (on) => {
      for (const item of list.children) if (!item.hidden) item.querySelector("input").checked = on;
    };
    const show = () => {
      const chosen = [...boxes].filter(([, box]) => box.checked).map(([id]) => id);
      location.search = new URLSearchParams(chosen.map((id) => ["run", id])).toString();
    };
    const chosen = runs.filter((run) => run.chosen).length;
    const button = (words, action) => element("button", { type: "button", onclick: action }, words);
    fill(
      place,
      element(
        "details",
        { open },
        element("summary", {}, `${chosen} of ${runs.length} runs in these folders; choose others`),
        element("p", {}, search, " ", button("all", () => all(true)), " ", button("none", () => all(false)), " ", button("show the chosen", show), " ", button("newest", () => (location.search = ""))),
        list,
      ),
    );
  },
};
