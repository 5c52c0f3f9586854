// The page: who is there, which namespace, and what is asked again and again.

import { Api } from "./api.js";
import { $, element, note, say, write } from "./dom.js";
import { Uploader } from "./uploader.js";
import { Volumes } from "./volumes.js";
import { isName } from "./words.js";

const TOKEN = "cdi-token";
const NAMESPACE = "cdi-namespace";
const BUSY = 1000;
const CALM = 4000;
const HIDDEN = 20_000;
const TROUBLE = 5000;

class Desk {
  api = null;
  session = null;
  namespace = "";
  volumesNow = new Map();
  #timer = 0;
  #asking = false;
  #again = false;
  #era = 0;

  constructor() {
    this.uploader = new Uploader(this);
    this.list = new Volumes(this);
    $("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = $("token").value.trim();
      if (token) this.enter(token);
    });
    $("leave").addEventListener("click", () => this.leave(""));
    $("namespace").addEventListener("change", () => this.go($("namespace").value));
    $("namespace-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const name = $("namespace-name").value.trim();
      if (isName(name)) this.go(name);
      else $("namespace-name").focus();
    });
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  async start() {
    // cdi serve prints a link with the token behind the #, which no browser sends to a server.
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (location.hash) history.replaceState(null, "", location.pathname);
    const token = given || sessionStorage.getItem(TOKEN);
    try {
      const about = await (await fetch("/page/api/about", { cache: "no-store" })).json();
      write($("login-hint"), String(about.hint || ""));
    } catch {
      // The next question will tell.
    }
    if (token) await this.enter(token);
    else this.leave("");
  }

  async enter(token) {
    const api = new Api(token);
    $("login-form").querySelector("button").disabled = true;
    try {
      this.session = await api.session(sessionStorage.getItem(NAMESPACE) || "");
    } catch (error) {
      this.leave(error.message);
      return;
    } finally {
      $("login-form").querySelector("button").disabled = false;
    }
    this.api = api;
    sessionStorage.setItem(TOKEN, token);
    $("token").value = "";
    $("login").hidden = true;
    $("desk").hidden = false;
    $("who").hidden = false;
    this.#place();
    say(`Signed in. Namespace ${this.namespace}.`);
    $("volumes-title").focus({ preventScroll: true });
  }

  /** Sign out; `why` where it was not asked for. */
  leave(why) {
    this.#era += 1;
    clearTimeout(this.#timer);
    sessionStorage.removeItem(TOKEN);
    this.api = null;
    this.list.clear();
    this.volumesNow.clear();
    $("desk").hidden = true;
    $("who").hidden = true;
    $("login").hidden = false;
    note($("login-error"), why);
    $("token").focus();
  }

  lost() {
    this.leave("The token is no longer valid.");
  }

  async go(namespace) {
    try {
      this.session = await this.api.session(namespace);
    } catch (error) {
      note($("volumes-error"), error.message);
      return;
    }
    sessionStorage.setItem(NAMESPACE, namespace);
    this.#place();
    say(`Namespace ${this.namespace}.`);
  }

  #place() {
    this.#era += 1;
    this.namespace = this.session.namespace;
    const names = this.session.namespaces;
    const listed = names.length > 0;
    $("namespace").hidden = !listed;
    $("namespace-form").hidden = listed;
    const all = names.includes(this.namespace) ? names : [this.namespace, ...names];
    $("namespace").replaceChildren(...all.map((name) => element("option", { value: name, text: name })));
    $("namespace").value = this.namespace;
    $("namespace-name").value = this.namespace;
    this.list.clear();
    this.volumesNow.clear();
    $("empty").hidden = true;
    note($("volumes-error"), "");
    this.uploader.permit();
    this.refresh();
  }

  volume(namespace, name) {
    return this.volumesNow.get(`${namespace}/${name}`);
  }

  /** Ask now; and then again by itself. */
  async refresh() {
    clearTimeout(this.#timer);
    if (this.#asking) {
      this.#again = true;
      return;
    }
    const { api, namespace } = this;
    if (!api) return;
    const era = this.#era;
    this.#asking = true;
    this.#again = false;
    let pause = CALM;
    try {
      const volumes = await api.volumes(namespace);
      if (era === this.#era) {
        this.volumesNow = new Map(volumes.map((one) => [`${one.namespace}/${one.name}`, one]));
        this.list.show(volumes);
        note($("volumes-error"), "");
        write($("state"), volumes.length === 1 ? "1 volume" : `${volumes.length} volumes`);
        if (volumes.some((one) => one.tone === "work" || one.deleting)) pause = BUSY;
      }
    } catch (error) {
      if (era === this.#era) {
        if (error.status === 401) {
          this.#asking = false;
          this.lost();
          return;
        }
        note($("volumes-error"), error.message);
        pause = TROUBLE;
      }
    }
    this.#asking = false;
    clearTimeout(this.#timer);
    if (document.hidden) pause = HIDDEN;
    this.#timer = setTimeout(() => this.refresh(), this.#again || era !== this.#era ? 0 : pause);
  }

  deleteVolume(volume) {
    return this.#ask({
      title: `Delete ${volume.name}?`,
      text: "The volume and its data are deleted permanently.",
      yes: "Delete",
      danger: true,
      act: async () => {
        await this.api.remove(volume.namespace, volume.name, volume.uid);
        say(`${volume.name} is being deleted.`);
      },
    });
  }

  cloneVolume(volume) {
    return this.#ask({
      title: `Clone ${volume.name}`,
      text: "The clone is an independent volume with the same content.",
      yes: "Clone",
      name: `${volume.name.slice(0, 58)}-copy`,
      act: async (name) => {
        if (!isName(name)) throw new Error("A name consists of lower-case letters, digits, “-” and “.”, at most 253 characters.");
        await this.api.clone(volume.namespace, volume.name, name);
        say(`${name} is being created.`);
      },
    });
  }

  /** A dialog; `act` is done on yes, and its failure is shown in it. */
  #ask({ title, text, yes, name = null, danger = false, act }) {
    const dialog = $("ask");
    write($("ask-title"), title);
    write($("ask-text"), text);
    write($("ask-yes"), yes);
    $("ask-yes").className = danger ? "danger" : "main";
    $("ask-field").hidden = name === null;
    $("ask-name").value = name ?? "";
    note($("ask-error"), "");
    $("ask-yes").disabled = false;
    $("ask-no").onclick = () => dialog.close();
    $("ask-form").onsubmit = async (event) => {
      event.preventDefault();
      $("ask-yes").disabled = true;
      try {
        await act($("ask-name").value.trim());
        dialog.close();
        this.refresh();
      } catch (error) {
        if (error.status === 401) {
          dialog.close();
          this.lost();
        } else {
          note($("ask-error"), error.message);
        }
      } finally {
        $("ask-yes").disabled = false;
      }
    };
    dialog.showModal();
    (name === null ? $("ask-no") : $("ask-name")).focus();
  }
}

new Desk().start();
