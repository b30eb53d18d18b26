import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { type IncomingHttpHeaders, type IncomingMessage, request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { type AddressInfo, connect, type Socket } from "node:net";
import { connect as tlsConnect, type ConnectionOptions, type TLSSocket } from "node:tls";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { type MetricFamily, MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { createHealthHandlers } from "../../../../agent/server/handlers/healthz.ts";
import type { Handler, UserInfo } from "../../../../agent/server/port.ts";
import type { KubeletHandlers, StreamHandler } from "../../../../agent/server/routes.ts";
import {
  createKubeletServer,
  type KubeletServerOptions,
  type ListenerName,
  type ServerConfig,
} from "../../../../agent/server/server.ts";
import { sendText } from "../../../../agent/server/respond.ts";
import { CertificateAuthority } from "../../../support/apiserver/pki.ts";

/** Issues what the tests serve with. Made once: keys cost time. */
export const authority = CertificateAuthority.create();
const pair = authority.issue({ commonName: "node", usage: "server", names: ["localhost", "127.0.0.1", "::1"] });

/** Something that may be replaced while the server runs. */
export class Changing<T> {
  #value: T;
  readonly #listeners = new Set<() => void>();

  constructor(value: T) {
    this.#value = value;
  }

  current = (): T => this.#value;

  subscribe = (listener: () => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  set(value: T): void {
    this.#value = value;
    for (const listener of this.#listeners) listener();
  }

  get listeners(): number {
    return this.#listeners.size;
  }
}

export type Pem = { readonly cert: Buffer; readonly key: Buffer };
export const pem = ({ certificate, key }: { certificate: string; key: string }): Pem => ({
  cert: Buffer.from(certificate),
  key: Buffer.from(key),
});

const on = {
  enableServer: true,
  address: "127.0.0.1",
  port: 0,
  readOnlyPort: 0,
  healthzPort: 0,
  healthzBindAddress: "127.0.0.1",
  enableDebuggingHandlers: true,
  enableProfilingHandler: true,
  enableDebugFlagsHandler: true,
  enableSystemLogHandler: true,
  checkpoint: true,
  statusz: true,
  flagz: true,
} satisfies ServerConfig;

/** Says its name and its parameters, so that a test sees where a request went. */
const naming = (name: string): Handler => {
  return ({ response, params, request }) => {
    sendText(response, 200, `${request.method} ${name} ${JSON.stringify(params)}`);
    return Promise.resolve();
  };
};

const namingStream = (name: string): StreamHandler => ({
  handle: naming(name),
  upgrade: async ({ socket, head, params, signal }) => {
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n`);
    socket.write(`${name} ${JSON.stringify(params)} ${head.toString()}`);
    const stop = () => socket.end();
    signal.addEventListener("abort", stop);
    socket.on("data", (chunk) => socket.write(chunk));
    await once(socket, "end");
    signal.removeEventListener("abort", stop);
    socket.end();
  },
});

export const namingHandlers = (): KubeletHandlers => ({
  ...createHealthHandlers([{ name: "ping", check: async () => {} }]),
  pods: naming("pods"),
  runningPods: naming("runningPods"),
  statsSummary: naming("statsSummary"),
  metrics: {
    agent: naming("metrics"),
    cadvisor: naming("cadvisor"),
    resource: naming("resource"),
    probes: naming("probes"),
    slis: naming("slis"),
  },
  run: naming("run"),
  exec: namingStream("exec"),
  attach: namingStream("attach"),
  portForward: namingStream("portForward"),
  containerLogs: naming("containerLogs"),
  nodeLogs: naming("nodeLogs"),
  configz: naming("configz"),
  checkpoint: naming("checkpoint"),
  pprof: naming("pprof"),
  verbosity: naming("verbosity"),
  statusz: naming("statusz"),
  flagz: naming("flagz"),
});

const user = (username: string): { user: UserInfo } => ({ user: { username, uid: "", groups: [], extra: {} } });

/**
 * Who sends `Authorization: Bearer <name>` is `<name>`, and may do what `allowed` says. "broken" cannot be asked about.
 * Without the header: nobody.
 */
export function testAuth(allowed: (user: string, verb: string, subresource: string) => boolean = () => true) {
  const asked: string[] = [];
  const auth: Pick<KubeletServerOptions, "authenticator" | "authorizer"> = {
    authenticator: {
      authenticate: async ({ headers: { authorization } }) => {
        await Promise.resolve();
        if (authorization === "Bearer wrong") throw new Error("no such token");
        return authorization === undefined ? undefined : user(authorization.replace("Bearer ", ""));
      },
    },
    authorizer: {
      authorize: async ({ username }, verb, subresources) => {
        await Promise.resolve();
        asked.push(`${username} ${verb} ${subresources.join(",")}`);
        if (username === "broken") throw new Error("API server is away");
        return subresources.some((subresource) => allowed(username, verb, subresource)) ? "allowed" : "denied";
      },
    },
  };
  return { ...auth, asked };
}

export interface TestServer extends AsyncDisposable {
  readonly ports: Partial<Record<ListenerName, number>>;
  readonly certificate: Changing<Pem | undefined>;
  readonly registry: MetricsRegistry;
  /** Settles when `run` does. */
  readonly done: Promise<void>;
  stop(): Promise<void>;
}

export type TestServerOptions = Partial<Omit<KubeletServerOptions, "config">> & { config?: Partial<ServerConfig> };

/** Runs the server on free ports of the loopback. */
export async function startServer({ config, ...options }: TestServerOptions = {}): Promise<TestServer> {
  const certificate = new Changing<Pem | undefined>(pem(pair));
  const registry = new MetricsRegistry();
  const ports: TestServer["ports"] = {};
  const stop = new AbortController();
  const listening = Promise.withResolvers<void>();
  const merged = { ...on, ...config };
  const wanted = [merged.enableServer, merged.enableServer && merged.readOnlyPort > 0, merged.healthzPort > 0];
  const count = wanted.filter(Boolean).length;
  const server = createKubeletServer({
    config: merged,
    tls: { options: {}, certificate },
    ...testAuth(),
    handlers: namingHandlers(),
    metrics: registry,
    clock: systemClock,
    log: silentLogger,
    onListening: (name, { port }: AddressInfo) => {
      ports[name] = port;
      if (Object.keys(ports).length === count) listening.resolve();
    },
    ...options,
  });
  const done = server.run(stop.signal);
  await Promise.race([listening.promise, done]);
  const end = async () => {
    stop.abort();
    await done;
  };
  return { ports, certificate, registry, done, stop: end, [Symbol.asyncDispose]: end };
}

export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: string;
}

export interface AskOptions {
  method?: string;
  headers?: Record<string, string>;
  body?: string;
  /** By default: alice. `null`: nobody. */
  as?: string | null;
  tls?: ConnectionOptions | false;
  host?: string;
}

/** One request on a connection of its own. */
export async function ask(port: number | undefined, path: string, options: AskOptions = {}): Promise<Answer> {
  const { method = "GET", as = "alice", body, tls = {}, host = "127.0.0.1" } = options;
  const headers = { ...(as === null ? {} : { Authorization: `Bearer ${as}` }), ...options.headers };
  const common = { host, port, path, method, headers, agent: false };
  const sent =
    tls === false
      ? httpRequest(common)
      : httpsRequest({ ...common, ca: authority.certificate, servername: "localhost", ...tls });
  sent.end(body);
  const [response] = (await once(sent, "response")) as [IncomingMessage];
  response.setEncoding("utf8");
  let text = "";
  for await (const chunk of response) text += String(chunk);
  return { status: response.statusCode ?? 0, headers: response.headers, body: text };
}

/** A plain or TLS connection that collects what comes. */
export class RawClient implements AsyncDisposable {
  readonly socket: Socket | TLSSocket;
  readonly closed: Promise<void>;
  text = "";

  constructor(socket: Socket | TLSSocket) {
    this.socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => void (this.text += chunk));
    socket.on("error", () => {});
    this.closed = new Promise((resolve) => void socket.once("close", () => resolve()));
  }

  static async plain(port: number | undefined): Promise<RawClient> {
    const socket = connect({ host: "127.0.0.1", port: port ?? 0, allowHalfOpen: true });
    const client = new RawClient(socket);
    await once(socket, "connect");
    return client;
  }

  static async tls(port: number | undefined, options: ConnectionOptions = {}): Promise<RawClient> {
    const socket = tlsConnect({
      host: "127.0.0.1",
      port: port ?? 0,
      ca: authority.certificate,
      servername: "localhost",
      ...options,
    });
    const client = new RawClient(socket);
    await once(socket, "secureConnect");
    return client;
  }

  /** Resolves when what came matches. Rejects when the connection closes before. */
  async until(pattern: RegExp): Promise<string> {
    while (!pattern.test(this.text)) {
      if (this.socket.destroyed) throw new Error(`closed before ${pattern} came, but ${JSON.stringify(this.text)}`);
      await Promise.race([once(this.socket, "data"), this.closed]);
    }
    return this.text;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.socket.destroy();
    await this.closed;
  }
}

/** Lines of a family's samples, such as `method=GET path=pods 1`. */
export async function samplesOf(registry: MetricsRegistry, name: string): Promise<string[]> {
  const families: MetricFamily[] = await registry.families();
  const family = families.find((one) => one.name === name);
  return [...(family?.samples ?? [])].map(({ labels, value, suffix = "" }) =>
    [
      suffix,
      ...Object.entries(labels)
        .map(([label, text]) => `${label}=${text}`)
        .sort(),
      value,
    ]
      .join(" ")
      .trim(),
  );
}

/** Waits until `condition` holds; the test's own timeout is the limit. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => void setTimeout(resolve, 5));
}

/** How many files and sockets this process has open. */
export async function openFiles(): Promise<number> {
  return (await readdir("/proc/self/fd")).length;
}
