"use strict";
// A page that is served asks its server for news; a page from a file never asks anybody.

const ASK_EVERY = 1000; // milliseconds
const MOST_LISTED = 200;
const LONGEST_ADDRESS = 60000; // characters; a server takes 65,536

const Live = {
  stamp: "",
  listing: "", // of the list of runs that is here already

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
      const news = await this.get("/news", this.listing);
      if (news.runs) this.drawPicker(news.runs);
      this.listing = news.listing;
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

  async get(path, listing = "") {
    const asked = new URLSearchParams(location.search);
    if (listing) asked.set("listing", listing);
    const answer = await fetch(`${path}?${asked}`, { cache: "no-store" });
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
    const place = document.getElementById("picker");
    place.hidden = false;
    const open = place.querySelector("details")?.open ?? false;
    const picked = new Set(runs.filter((run) => run.chosen).map((run) => run.id));
    const chosen = picked.size;
    const words = new Map(runs.map((run) => [run.id, [run.id, run.words, run.status].filter(Boolean).join("  ·  ")]));
    const list = element("ul", {});
    const search = element("input", { type: "search", placeholder: "find in the list" });
    const say = element("p", { className: "say" });
    const found = () => runs.filter((run) => words.get(run.id).toLowerCase().includes(search.value.toLowerCase()));
    const item = ({ id }) => {
      const box = element("input", { type: "checkbox", checked: picked.has(id) });
      box.addEventListener("change", () => (box.checked ? picked.add(id) : picked.delete(id)));
      return element("li", {}, element("label", {}, box, " ", words.get(id)));
    };
    const drawList = () => {
      const those = found();
      fill(list, those.slice(0, MOST_LISTED).map(item));
      fill(say, those.length > MOST_LISTED ? `the first ${MOST_LISTED} of ${those.length}; search for others` : "");
    };
    const all = (on) => {
      for (const { id } of found()) on ? picked.add(id) : picked.delete(id);
      drawList();
    };
    const show = () => {
      const asked = new URLSearchParams([...picked].map((id) => ["run", id])).toString();
      if (asked.length > LONGEST_ADDRESS) fill(say, `${picked.size} runs are too many for one address; choose fewer`);
      else location.search = asked;
    };
    search.addEventListener("input", drawList);
    drawList();
    const button = (words, action) => element("button", { type: "button", onclick: action }, words);
    fill(
      place,
      element(
        "details",
        { open },
        element("summary", {}, `${chosen} of ${runs.length} runs in these folders; choose others`),
        element("p", {}, search, " ", button("all", () => all(true)), " ", button("none", () => all(false)), " ", button("show the chosen", show), " ", button("newest", () => (location.search = ""))),
        list,
        say,
      ),
    );
  },
};
