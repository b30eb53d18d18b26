import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import { Agent, type RequestOptions, request } from "node:https";
import { isObject, type JsonObject } from "../../support/apiserver/json.ts";
import type { KeyPair } from "../../support/apiserver/pki.ts";
import type { TestApiServer } from "../../support/apiserver/server.ts";

export interface Answer {
  code: number;
  headers: IncomingMessage["headers"];
  text: string;
  body: JsonObject;
}

export interface CallOptions {
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** A small HTTP/1.1 client with its own connections, as admin unless it is given other credentials. */
export class Client {
  readonly #server: TestApiServer;
  readonly #agent: Agent;

  constructor(server: TestApiServer, pair: KeyPair | "anonymous" = adminPair(server)) {
    this.#server = server;
    const credentials = pair === "anonymous" ? {} : { cert: pair.certificate, key: pair.key };
    this.#agent = new Agent({ ca: server.caCertificate, keepAlive: true, ...credentials });
  }

  async call(method: string, path: string, options: CallOptions = {}): Promise<Answer> {
    const response = await this.open(method, path, options);
    let text = "";
    for await (const chunk of response) text += String(chunk);
    let body: unknown;
    try {
      body = JSON.parse(text);
    } catch {
      body = {};
    }
    return { code: response.statusCode ?? 0, headers: response.headers, text, body: isObject(body) ? body : {} };
  }

  /** Resolves with the headers. */
  async open(method: string, path: string, { body, headers = {}, signal }: CallOptions = {}): Promise<IncomingMessage> {
    const url = new URL(path, this.#server.url);
    const text = body === undefined ? "" : typeof body === "string" ? body : JSON.stringify(body);
    const options: RequestOptions = {
      method,
      agent: this.#agent,
      // Node frames the body of a DELETE only when its length is said.
      headers: { "content-type": "application/json", "content-length": Buffer.byteLength(text), ...headers },
      ...(signal === undefined ? {} : { signal }),
    };
    const outgoing = request(url, options);
    // Who waits for the headers or reads the body gets the first error; there may be a second that says nothing new.
    outgoing.on("error", () => {});
    outgoing.on("response", (response) => response.on("error", () => {}));
    outgoing.end(text);
    const [response] = (await once(outgoing, "response")) as [IncomingMessage];
    return response;
  }

  get(path: string, headers: Record<string, string> = {}): Promise<Answer> {
    return this.call("GET", path, { headers });
  }

  post(path: string, body: unknown): Promise<Answer> {
    return this.call("POST", path, { body });
  }

  patch(path: string, type: string, body: unknown): Promise<Answer> {
    return this.call("PATCH", path, { body, headers: { "content-type": `application/${type}` } });
  }

  /** An open watch whose events are read one at a time. */
  watch(path: string, headers: Record<string, string> = {}): Watch {
    return new Watch(this, path, headers);
  }

  close(): void {
    this.#agent.destroy();
  }
}

export interface WatchEvent {
  type: string;
  object: JsonObject;
}

/** Reads a watch line by line. */
export class Watch {
  readonly #stop = new AbortController();
  readonly #events: AsyncGenerator<WatchEvent>;
  #response: IncomingMessage | undefined;
  /** Settles with the headers. */
  readonly opened: Promise<IncomingMessage>;
  /** What was received after the last whole line. */
  partial = "";

  constructor(client: Client, path: string, headers: Record<string, string>) {
    this.opened = client.open("GET", path, { headers, signal: this.#stop.signal });
    this.opened.catch(() => {});
    this.#events = this.#read();
  }

  /** The next event; undefined when the stream has ended. Rejects when it breaks off. */
  async next(): Promise<WatchEvent | undefined> {
    const { value, done } = await this.#events.next();
    return done === true ? undefined : value;
  }

  async take(count: number): Promise<WatchEvent[]> {
    const events: WatchEvent[] = [];
    while (events.length < count) {
      const event = await this.next();
      if (event === undefined) break;
      events.push(event);
    }
    return events;
  }

  close(): void {
    // Aborting a request whose answer is complete would hit the next one on its connection.
    if (this.#response === undefined) this.#stop.abort();
    else this.#response.destroy();
  }

  async *#read(): AsyncGenerator<WatchEvent> {
    const response = await this.opened;
    this.#response = response;
    for await (const chunk of response) {
      const lines = (this.partial + String(chunk)).split("\n");
      this.partial = lines.pop() ?? "";
      for (const line of lines) yield JSON.parse(line) as WatchEvent;
    }
  }
}

function adminPair(server: TestApiServer): KeyPair {
  return server.issueCertificate({ commonName: "admin", organizations: ["system:masters"], usage: "client" });
}

/** Smallest pod that is valid. */
export function simplePod(name: string, more: JsonObject = {}): JsonObject {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, ...(isObject(more["metadata"]) ? more["metadata"] : {}) },
    spec: { containers: [{ name: "c", image: "busybox:1" }], ...(isObject(more["spec"]) ? more["spec"] : {}) },
  };
}

/** A node that pods are bound to. */
export function readyNode(name: string): JsonObject {
  return {
    apiVersion: "v1",
    kind: "Node",
    metadata: { name, labels: { "kubernetes.io/hostname": name } },
    status: {
      conditions: [{ type: "Ready", status: "True" }],
      addresses: [{ type: "InternalIP", address: "127.0.0.1" }],
    },
  };
}
