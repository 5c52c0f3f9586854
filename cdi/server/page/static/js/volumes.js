// The list of volumes.  Rows are kept and written over, so that focus and selection stay where they are.

import { $, element, note, say, write } from "./dom.js";
import { spans } from "./uploader.js";
import { bytes, duration, percent, rate } from "./words.js";

export class Volumes {
  #rows = new Map();
  #desk;

  /** `desk`: {session, uploader, ask(question), api, refresh(), lost()}. */
  constructor(desk) {
    this.#desk = desk;
  }

  clear() {
    this.#rows.clear();
    $("volumes").replaceChildren();
  }

  show(volumes) {
    const list = $("volumes");
    const gone = new Set(this.#rows.keys());
    let before = null;
    for (const volume of volumes) {
      gone.delete(volume.uid);
      let row = this.#rows.get(volume.uid);
      if (!row) {
        row = new Row(this.#desk);
        this.#rows.set(volume.uid, row);
      }
      row.show(volume);
      const place = before ? before.nextSibling : list.firstChild;
      if (place !== row.node) list.insertBefore(row.node, place);
      before = row.node;
    }
    for (const uid of gone) {
      const { node } = this.#rows.get(uid);
      if (node.contains(document.activeElement)) $("volumes-title").focus();
      node.remove();
      this.#rows.delete(uid);
    }
    $("empty").hidden = volumes.length > 0;
  }
}

class Row {
  #desk;
  #volume = null;
  #conditions = "";

  constructor(desk) {
    this.#desk = desk;
    this.title = element("h3");
    this.phase = element("span", { class: "phase" });
    this.upload = this.#button("Upload", () => desk.uploader.choose(this.#volume));
    this.clone = this.#button("Clone", () => desk.cloneVolume(this.#volume));
    this.remove = this.#button("Delete", () => desk.deleteVolume(this.#volume));
    this.bar = element("progress", { max: 1, hidden: true });
    this.line = element("p", { class: "line" });
    this.why = element("p", { class: "why", hidden: true });
    this.rows = element("tbody");
    this.details = element(
      "details",
      {},
      element("summary", { text: "Conditions" }),
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ...["Condition", "Status", "Reason", "Message"].map((text) => element("th", { text, scope: "col" })))),
        this.rows,
      ),
    );
    this.node = element(
      "li",
      {},
      element(
        "div",
        { class: "row" },
        element("div", { class: "names" }, this.title, this.phase),
        element("div", { class: "actions" }, this.upload, this.clone, this.remove),
      ),
      this.bar,
      this.line,
      this.why,
      this.details,
    );
  }

  #button(text, call) {
    return element("button", { type: "button", class: "quiet small", text, on: { click: call } });
  }

  show(volume) {
    const before = this.#volume;
    this.#volume = volume;
    const { may } = this.#desk.session;
    write(this.title, volume.name);
    write(this.phase, volume.deleting ? "Terminating" : volume.phase || "New");
    this.phase.className = `phase ${volume.tone}`;
    for (const [button, verb] of [[this.upload, "Upload into"], [this.clone, "Clone"], [this.remove, "Delete"]]) {
      button.setAttribute("aria-label", `${verb} ${volume.name}`);
    }
    const busy = this.#desk.uploader.busy(volume.namespace, volume.name);
    this.upload.hidden = !(may.upload && volume.takesUpload && !volume.deleting && !busy);
    this.clone.hidden = !(may.create && volume.phase === "Succeeded" && volume.kind === "disk" && !volume.deleting);
    this.remove.hidden = !may.delete || volume.deleting;
    const { progress } = volume;
    this.bar.hidden = volume.tone !== "work";
    this.bar.setAttribute("aria-label", `${volume.name}: ${volume.phase}`);
    if (progress && progress.fraction !== null) this.bar.value = progress.fraction;
    else this.bar.removeAttribute("value");
    spans(this.line, facts(volume));
    note(this.why, volume.message);
    this.why.classList.toggle("bad", volume.tone === "bad");
    this.#showConditions(volume.conditions);
    if (before && before.phase !== volume.phase && ["Succeeded", "Failed"].includes(volume.phase)) {
      say(`${volume.name}: ${volume.phase}. ${volume.phase === "Failed" ? volume.message : ""}`);
    }
  }

  #showConditions(conditions) {
    this.details.hidden = conditions.length === 0;
    const text = JSON.stringify(conditions);
    if (text === this.#conditions) return;
    this.#conditions = text;
    this.rows.replaceChildren(
      ...conditions.map((one) =>
        element(
          "tr",
          {},
          element("th", { text: one.type, scope: "row" }),
          ...[one.status, one.reason, one.message].map((cell) => element("td", { text: cell })),
        ),
      ),
    );
  }
}

function facts(volume) {
  const parts = [];
  const { progress } = volume;
  if (volume.tone === "work" && progress) {
    if (progress.total) parts.push(`${bytes(progress.done)} of ${bytes(progress.total)}`);
    if (progress.fraction !== null) parts.push(percent(progress.fraction));
    if (progress.rate) parts.push(rate(progress.rate));
    if (progress.eta !== null && progress.eta !== undefined) parts.push(`${duration(progress.eta)} left`);
    if (progress.note) parts.push(progress.note);
  }
  if (volume.size) parts.push(volume.size);
  parts.push(`from ${volume.source}`);
  if (volume.restarts) parts.push(`${volume.restarts} restarts`);
  if (volume.age !== null) parts.push(`${duration(volume.age)} old`);
  return parts;
}
