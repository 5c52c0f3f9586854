// What the page asks its server.  Whether it may is decided by the token, never here.

/** A refusal: a code of docs/reference/errors.md, the HTTP status, a message with its remedy. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const TIMEOUT = 90_000;

export class Api {
  constructor(token) {
    this.token = token;
  }

  session(namespace) {
    return this.#ask("GET", `session${namespace ? `?namespace=${encodeURIComponent(namespace)}` : ""}`);
  }

  async volumes(namespace) {
    return (await this.#ask("GET", `volumes/${encodeURIComponent(namespace)}`)).volumes;
  }

  create(wish) {
    return this.#ask("POST", `volumes/${encodeURIComponent(wish.namespace)}`, wish);
  }

  remove(namespace, name, uid) {
    return this.#ask("DELETE", `${this.#volume(namespace, name)}?uid=${encodeURIComponent(uid)}`);
  }

  clone(namespace, name, copy) {
    return this.#ask("POST", `${this.#volume(namespace, name)}/clone`, { name: copy });
  }

  /** The right to upload into a volume for a few minutes. */
  async uploadToken(namespace, name) {
    return (await this.#ask("POST", `${this.#volume(namespace, name)}/token`, {})).token;
  }

  #volume(namespace, name) {
    return `volumes/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;
  }

  async #ask(method, path, body) {
    let answer;
    let document = {};
    try {
      answer = await fetch(`/page/api/${path}`, {
        method,
        headers: {
          Authorization: `Bearer ${this.token}`,
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: AbortSignal.timeout(TIMEOUT),
      });
      document = await answer.json().catch(() => ({}));
    } catch {
      throw new Refusal(0, "Unreachable", "The server cannot be reached. Retrying automatically.");
    }
    if (!answer.ok) {
      const message = typeof document.message === "string" ? document.message : `The server answered ${answer.status}.`;
      throw new Refusal(answer.status, String(document.code || ""), message);
    }
    return document;
  }
}
