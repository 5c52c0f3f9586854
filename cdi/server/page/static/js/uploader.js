// Choosing an image, its preview, and the uploads of this page.

import { $, element, note, say, write } from "./dom.js";
import { Meter } from "./meter.js";
import { probe } from "./probe.js";
import { Upload } from "./upload.js";
import { bytes, duration, isName, nameOf, normalQuantity, parseQuantity, percent, quantity, rate } from "./words.js";

const DONE_FOR = 15_000;
const READY = 300_000;

export class Uploader {
  #desk;
  #file = null;
  #found = null;
  #target = null;
  #turn = 0;
  #running = new Map();

  /** `desk`: {api, namespace, session, volume(namespace, name), refresh(), lost()}. */
  constructor(desk) {
    this.#desk = desk;
    const drop = $("drop");
    $("choose").addEventListener("click", () => this.choose(null));
    $("other").addEventListener("click", () => this.choose(this.#target));
    $("file").addEventListener("change", () => {
      const [file] = $("file").files;
      $("file").value = "";
      if (file) this.#take(file);
    });
    $("plan").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#begin();
    });
    $("name").addEventListener("input", () => this.#judgeName());
    $("size").addEventListener("input", () => this.#judgeSize());
    let depth = 0;
    const files = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragenter", (event) => {
      if (files(event)) drop.classList.toggle("over", (depth += 1) > 0);
    });
    document.addEventListener("dragleave", (event) => {
      if (files(event)) drop.classList.toggle("over", (depth = Math.max(0, depth - 1)) > 0);
    });
    // Anywhere: a file that misses must not replace the page.
    document.addEventListener("dragover", (event) => files(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      depth = 0;
      drop.classList.remove("over");
      const [file] = event.dataTransfer.files;
      if (file && this.#allowed()) {
        this.#target = null;
        this.#take(file);
      }
    });
    window.addEventListener("beforeunload", (event) => {
      if (this.#running.size) event.preventDefault();
    });
  }

  /** Show what this token may. */
  permit() {
    const may = this.#desk.session.may;
    $("choose").disabled = !this.#allowed();
    const missing = [may.create ? "" : "create DataVolumes", may.upload ? "" : "create upload tokens"].filter(Boolean);
    note($("upload-refused"), missing.length ? `This token may not ${missing.join(" or ")} in this namespace.` : "");
    const classes = this.#desk.session.storageClasses;
    $("class-field").hidden = classes.length === 0;
    $("mode-field").hidden = classes.length === 0;
    const kept = $("class").value;
    $("class").replaceChildren(
      element("option", { value: "", text: "Default" }),
      ...classes.map((name) => element("option", { value: name, text: name })),
    );
    $("class").value = classes.includes(kept) ? kept : "";
  }

  #allowed() {
    const may = this.#desk.session.may;
    return may.upload && (may.create || this.#target !== null);
  }

  /** Choose a file, for a volume that waits for one where it is given. */
  choose(target) {
    this.#target = target;
    $("file").click();
  }

  /** Whether this page uploads into a volume now. */
  busy(namespace, name) {
    return this.#running.has(`${namespace}/${name}`);
  }

  async #take(file) {
    const turn = (this.#turn += 1);
    this.#file = file;
    this.#found = null;
    $("drop").hidden = true;
    $("plan").hidden = false;
    $("begin").disabled = true;
    note($("plan-error"), "");
    note($("warning"), "");
    write($("file-name"), file.name);
    write($("file-size"), bytes(file.size));
    $("facts").replaceChildren(fact("Format", "is being inspected …"));
    let found;
    try {
      found = await probe(file);
    } catch {
      found = { format: "", wrapper: "", size: null, detail: "", warning: "", refusal: "The file cannot be read." };
    }
    if (turn !== this.#turn) return;
    this.#found = found;
    const format = [found.format || (found.wrapper ? "an image" : "unknown"), found.wrapper ? `in ${found.wrapper}` : ""];
    $("facts").replaceChildren(
      fact("Format", format.filter(Boolean).join(" ")),
      fact("Virtual size", found.size === null ? "not known" : bytes(found.size)),
      ...(found.detail ? [fact("Kind", found.detail)] : []),
    );
    note($("warning"), found.refusal || found.warning);
    $("warning").classList.toggle("bad", Boolean(found.refusal));
    const fixed = this.#target !== null;
    $("name").value = fixed ? this.#target.name : nameOf(file.name);
    $("name").readOnly = fixed;
    $("size").value = fixed ? this.#target.size : found.size === null ? "" : quantity(found.size);
    $("size").readOnly = fixed;
    $("class").disabled = fixed;
    $("mode").disabled = fixed;
    write($("begin"), fixed ? "Upload" : "Create and upload");
    this.#judgeName();
    this.#judgeSize();
    $("begin").disabled = Boolean(found.refusal);
    (found.refusal ? $("other") : fixed ? $("begin") : $("name")).focus();
    if (!fixed && !found.refusal) $("name").select();
  }

  #judgeName() {
    const name = $("name").value.trim();
    let trouble = "";
    if (!isName(name)) trouble = "Use lower-case letters, digits, “-” and “.”, at most 253 characters.";
    else if (this.#target === null && this.#desk.volume(this.#desk.namespace, name)) trouble = "The volume already exists.";
    $("name").setAttribute("aria-invalid", String(Boolean(trouble)));
    write($("name-note"), trouble || `In namespace ${this.#desk.namespace}`);
    return !trouble;
  }

  #judgeSize() {
    const wanted = parseQuantity($("size").value);
    const least = this.#found?.size ?? null;
    let trouble = "";
    if (wanted === null || wanted <= 0) trouble = "Enter a size such as 10Gi or 500M.";
    else if (least !== null && this.#found.format && wanted < Number(least)) trouble = `The image needs ${quantity(least)}.`;
    $("size").setAttribute("aria-invalid", String(Boolean(trouble)));
    write($("size-note"), trouble || (least === null ? "" : `Virtual size of the image: ${bytes(least)}`));
    return !trouble;
  }

  async #begin() {
    const file = this.#file;
    if (!file || !this.#found || this.#found.refusal) return;
    const [named, sized] = [this.#judgeName(), this.#judgeSize()];
    if (!named || !sized) {
      $(named ? "size" : "name").focus();
      return;
    }
    const { api, namespace } = this.#desk;
    const name = $("name").value.trim();
    const key = `${namespace}/${name}`;
    $("begin").disabled = true;
    note($("plan-error"), "");
    try {
      if (this.#target === null) {
        await api.create({
          namespace,
          name,
          size: normalQuantity($("size").value),
          storageClass: $("class").value,
          accessMode: $("mode").value,
        });
      }
    } catch (error) {
      $("begin").disabled = false;
      if (error.status === 401) this.#desk.lost();
      note($("plan-error"), error.message);
      return;
    }
    this.#turn += 1;
    [this.#file, this.#found, this.#target] = [null, null, null];
    $("plan").hidden = true;
    $("drop").hidden = false;
    $("choose").focus();
    this.#desk.refresh();
    this.#run(file, api, namespace, name, key);
  }

  async #run(file, api, namespace, name, key) {
    const shown = new Shown(file, name);
    $("uploads").prepend(shown.node);
    const meter = new Meter();
    const upload = new Upload(file, {
      endpoint: `/v1beta1/tus/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`,
      fingerprint: `cdi-upload:${namespace}/${name}/${file.size}/${file.lastModified}`,
      token: () => api.uploadToken(namespace, name),
      progress: (sent, total) => shown.progress(sent, total, meter.mark(sent, total)),
      waiting: (message) => {
        if (message) meter.restart();
        shown.waiting(message);
      },
    });
    shown.cancelled = () => upload.stop();
    this.#running.set(key, upload);
    say(`Uploading ${file.name} to ${name}.`);
    try {
      await this.#ready(namespace, name, upload, shown);
      await upload.run();
      shown.end(upload.stopped ? "Cancelled" : "Sent", upload.stopped ? "wait" : "good");
      say(upload.stopped ? `The upload to ${name} was cancelled.` : `${file.name} was uploaded to ${name}.`);
      if (!upload.stopped) setTimeout(() => shown.node.remove(), DONE_FOR);
    } catch (error) {
      if (error.status === 401) this.#desk.lost();
      shown.end(error.message, "bad");
      say(`The upload to ${name} failed. ${error.message}`);
    } finally {
      this.#running.delete(key);
      this.#desk.refresh();
    }
  }

  /** Until the volume takes an upload; a refusal where it never will. */
  async #ready(namespace, name, upload, shown) {
    const until = performance.now() + READY;
    while (!upload.stopped) {
      const volume = this.#desk.volume(namespace, name);
      if (volume?.takesUpload) return;
      if (volume?.tone === "bad") throw new Error(volume.message || `The volume is ${volume.phase}.`);
      if (performance.now() > until) throw new Error(volume?.message || "The volume did not become ready for an upload.");
      shown.waiting("Waiting until the volume is ready.");
      await new Promise((resolve) => setTimeout(resolve, 400));
      this.#desk.refresh();
    }
  }
}

function fact(term, text) {
  return element("div", {}, element("dt", { text: term }), element("dd", { text }));
}

/** One upload on the page. */
class Shown {
  #told = 0;

  constructor(file, name) {
    this.name = name;
    this.size = file.size;
    this.cancelled = () => {};
    this.bar = element("progress", { max: 1, "aria-label": `Upload into ${name}` });
    this.line = element("p", { class: "line" });
    this.why = element("p", { class: "why", hidden: true });
    this.button = element("button", { type: "button", class: "quiet small", text: "Cancel", "aria-label": `Cancel the upload into ${name}` });
    this.button.addEventListener("click", () => {
      this.button.disabled = true;
      this.cancelled();
    });
    const names = element("div", { class: "names" }, element("h3", { text: name }), element("p", { class: "dim", text: file.name }));
    this.node = element("li", {}, element("div", { class: "row" }, names, this.button), this.bar, this.line, this.why);
  }

  progress(sent, total, { rate: speed, left }) {
    const share = total ? sent / total : 0;
    this.bar.value = share;
    const parts = [`${bytes(sent)} of ${bytes(total)}`, percent(share)];
    if (speed !== null) parts.push(rate(speed), `${duration(left)} left`);
    spans(this.line, parts);
    const quarter = Math.floor(share * 4);
    if (quarter > this.#told && quarter < 4) {
      this.#told = quarter;
      say(`${this.name}: ${percent(share)} sent.`);
    }
  }

  waiting(message) {
    note(this.why, message);
  }

  end(message, tone) {
    note(this.why, message);
    this.why.className = `why phase ${tone}`;
    this.button.textContent = "Dismiss";
    this.button.setAttribute("aria-label", `Dismiss the upload into ${this.name}`);
    this.button.disabled = false;
    this.cancelled = () => this.node.remove();
    if (tone === "good") {
      this.bar.value = 1;
      spans(this.line, [bytes(this.size)]);
    } else {
      this.bar.hidden = true;
    }
  }
}

/** A line of small texts. */
export function spans(line, parts) {
  while (line.children.length > parts.length) line.lastChild.remove();
  parts.forEach((text, i) => {
    if (!line.children[i]) line.append(element("span"));
    write(line.children[i], text);
  });
}
