import type { IncomingMessage, ServerResponse } from "node:http";
import { Agent, request as httpsRequest } from "node:https";
import { isIP } from "node:net";
import type { Duplex } from "node:stream";
import { connect as tlsConnect, type TLSSocket } from "node:tls";
import type { Node, Pod } from "../../../agent/kube/types.ts";
import type { Exchange } from "./exchange.ts";
import type { KeyPair } from "./pki.ts";
import type { RequestInfo } from "./request-info.ts";
import { ApiError, badRequest, notFound } from "./status.ts";
import type { Store } from "./store.ts";
import { typed } from "./types.ts";

// Where a kubelet is reached, in this order; kubeadm's --kubelet-preferred-address-types.
const addressTypes = ["InternalIP", "ExternalIP", "Hostname"];
// Above 50 000 bytes the API server cuts what a kubelet says in an error.
const errorBytesMax = 50_000;
// Longest wait for a kubelet's answer to an upgrade.
const upgradeTimeoutMs = 30_000;
// metrics-server gives a kubelet 10 s to answer a scrape.
const fetchTimeoutMs = 10_000;
const summaryBytesMax = 64 << 20;
const requestHeaders = ["accept", "accept-encoding", "content-type", "content-length", "range", "user-agent"];
const answerHeaders = ["allow", "content-encoding", "content-type", "location", "x-content-type-options"];
const podStreams = ["exec", "attach", "portforward"];

interface Target {
  host: string;
  port: number;
  path: string;
}

/** Passes logs, exec, attach, port-forward and node proxy requests on to the kubelet that has the pod. */
export class NodeProxy {
  readonly #store: Store;
  readonly #client: KeyPair;
  readonly #agent: Agent;
  readonly #sockets = new Set<Duplex>();

  /** @param client certificate that kubelets know the API server by; kubelets' own certificates are not checked */
  constructor(store: Store, client: KeyPair) {
    this.#store = store;
    this.#client = client;
    this.#agent = new Agent({ ...this.#tls(), keepAlive: false });
  }

  handles({ plural, subresource }: RequestInfo): boolean {
    if (plural === "nodes") return subresource === "proxy";
    return plural === "pods" && (subresource === "log" || podStreams.includes(subresource));
  }

  /** Requests without an upgrade. */
  async serve(exchange: Exchange, info: RequestInfo): Promise<void> {
    if (podStreams.includes(info.subresource)) throw badRequest("Upgrade request required");
    const target = this.#target(info, exchange.url);
    const { method } = exchange;
    await new Promise<void>((resolve, reject) => {
      const outgoing = httpsRequest({
        ...target,
        method,
        agent: this.#agent,
        headers: pick(exchange.request.headers, requestHeaders),
      });
      outgoing.on("error", (err) => reject(unreachable(target, err)));
      outgoing.on("response", (incoming) => {
        const code = incoming.statusCode ?? 502;
        if (info.subresource === "log" && (code < 200 || code > 206)) {
          collect(incoming, errorBytesMax).then((text) => reject(logError(code, text)), reject);
          return;
        }
        exchange.code = code;
        const response = exchange.response as ServerResponse;
        response.writeHead(code, pick(incoming.headers, answerHeaders));
        // A followed log may say nothing for long; the client should know that it is connected.
        response.flushHeaders?.();
        incoming.on("data", (chunk: Buffer) => {
          if (!response.write(chunk)) {
            incoming.pause();
            response.once("drain", () => incoming.resume());
          }
        });
        incoming.on("end", () => response.end());
        incoming.on("error", () => exchange.cut());
        incoming.on("close", () => resolve());
      });
      exchange.gone.addEventListener("abort", () => outgoing.destroy(), { once: true });
      if (method === "GET" || method === "HEAD") {
        outgoing.end();
      } else {
        (exchange.request as IncomingMessage).pipe(outgoing);
      }
    });
  }

  /** GETs a JSON document of a node's kubelet. Rejects when it does not answer with 200. */
  async fetch(nodeName: string, path: string): Promise<unknown> {
    const target = { ...this.#nodeAddress(nodeName), path };
    return new Promise((resolve, reject) => {
      const outgoing = httpsRequest({ ...target, agent: this.#agent, timeout: fetchTimeoutMs });
      outgoing.on("timeout", () => outgoing.destroy(new Error("timed out")));
      outgoing.on("error", (err) => reject(unreachable(target, err)));
      outgoing.on("response", (incoming) => {
        collect(incoming, summaryBytesMax)
          .then((text) => {
            if (incoming.statusCode === 200) resolve(JSON.parse(text));
            else reject(new Error(`${hostOf(target)}${path} answered ${incoming.statusCode}`));
          })
          .catch(reject);
      });
      outgoing.end();
    });
  }

  /**
   * Upgraded streams: sends the request on and, whatever the kubelet answers, splices the two connections.
   *
   * @returns the kubelet's status code
   */
  async upgrade(
    request: IncomingMessage,
    info: RequestInfo,
    url: URL,
    client: { socket: Duplex; head: Buffer },
  ): Promise<number> {
    const target = this.#target(info, url);
    this.#checkProtocol(request, info);
    const kubelet = await this.#connect(target);
    for (const socket of [kubelet, client.socket]) {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    }
    kubelet.on("error", () => client.socket.destroy());
    kubelet.on("close", () => client.socket.destroy());
    client.socket.on("close", () => kubelet.destroy());
    const lines = [`${request.method ?? "GET"} ${target.path} HTTP/1.1`, `Host: ${hostOf(target)}`];
    for (let i = 0; i + 1 < request.rawHeaders.length; i += 2) {
      const name = request.rawHeaders[i] ?? "";
      if (/^(host|authorization|impersonate-.*)$/i.test(name)) continue;
      lines.push(`${name}: ${request.rawHeaders[i + 1] ?? ""}`);
    }
    kubelet.write(`${lines.join("\r\n")}\r\n\r\n`);
    if (client.head.length > 0) kubelet.write(client.head);
    const code = new Promise<number>((resolve) => {
      kubelet.once("data", (chunk: Buffer) => {
        resolve(Number(/^HTTP\/1\.\d (\d{3})/.exec(chunk.subarray(0, 32).toString("latin1"))?.[1] ?? 502));
      });
      kubelet.once("close", () => resolve(502));
    });
    kubelet.pipe(client.socket);
    client.socket.pipe(kubelet);
    return code;
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#agent.destroy();
  }

  #target(info: RequestInfo, url: URL): Target {
    const nodeName = info.plural === "nodes" ? info.name.split(":")[0] : undefined;
    if (nodeName !== undefined) {
      return { ...this.#nodeAddress(nodeName), path: `/${encodeURI(info.rest)}${url.search}` };
    }
    const found = this.#store.get("pods", `${info.namespace}/${info.name}`);
    if (found === undefined) throw notFound({ group: "", plural: "pods" }, info.name);
    const pod = typed<Pod>(found);
    const podNode = pod.spec.nodeName ?? "";
    if (podNode === "") throw badRequest(`pod ${info.name} does not have a host assigned`);
    const query = new URLSearchParams(url.searchParams);
    const base = this.#nodeAddress(podNode);
    const where = `${info.namespace}/${info.name}`;
    if (info.subresource === "portforward") return { ...base, path: withQuery(`/portForward/${where}`, query) };
    const container = containerOf(pod, query.get("container") ?? "");
    query.delete("container");
    if (info.subresource === "log") {
      for (const flag of ["follow", "previous", "timestamps"]) keepTrue(query, flag, flag, "true");
      return { ...base, path: withQuery(`/containerLogs/${where}/${container}`, query) };
    }
    for (const [from, to] of [
      ["stdin", "input"],
      ["stdout", "output"],
      ["stderr", "error"],
      ["tty", "tty"],
    ] as const) {
      keepTrue(query, from, to, "1");
    }
    return { ...base, path: withQuery(`/${info.subresource}/${where}/${container}`, query) };
  }

  #nodeAddress(name: string): { host: string; port: number } {
    const found = this.#store.get("nodes", name);
    if (found === undefined) throw notFound({ group: "", plural: "nodes" }, name);
    const { status } = typed<Node>(found);
    const address = addressTypes
      .map((type) => status?.addresses?.find((a) => a.type === type)?.address)
      .find((a) => a !== undefined);
    if (address === undefined) {
      throw new ApiError(500, "InternalError", `no preferred addresses found; known addresses: []`);
    }
    return { host: address, port: status?.daemonEndpoints?.kubeletEndpoint?.Port ?? 10_250 };
  }

  // For kubelets that do not say they speak it, the real server turns the newest WebSocket protocols into SPDY. This one
  // refuses them instead, upon which kubectl itself falls back to SPDY.
  #checkProtocol(request: IncomingMessage, info: RequestInfo): void {
    if (request.headers.upgrade?.toLowerCase() !== "websocket") return;
    const protocols = request.headers["sec-websocket-protocol"] ?? "";
    if (!/v5\.channel\.k8s\.io|SPDY\/3\.1\+/.test(protocols)) return;
    const nodeName =
      typed<Pod>(this.#store.get("pods", `${info.namespace}/${info.name}`) ?? nothing).spec?.nodeName ?? "";
    const node = this.#store.get("nodes", nodeName);
    const features = node === undefined ? undefined : typed<Node>(node).status?.declaredFeatures;
    if (features?.includes("ExtendWebSocketsToKubelet") === true) return;
    throw badRequest(`node ${nodeName} does not take WebSocket streams; use SPDY`);
  }

  async #connect(target: Target): Promise<TLSSocket> {
    return new Promise((resolve, reject) => {
      const servername = isIP(target.host) === 0 ? { servername: target.host } : {};
      const socket = tlsConnect({
        host: target.host,
        port: target.port,
        ...servername,
        ...this.#tls(),
        ALPNProtocols: ["http/1.1"],
      });
      const timer = setTimeout(() => socket.destroy(new Error("timed out")), upgradeTimeoutMs);
      socket.once("secureConnect", () => {
        clearTimeout(timer);
        socket.off("error", fail);
        resolve(socket);
      });
      const fail = (err: Error) => {
        clearTimeout(timer);
        reject(unreachable(target, err));
      };
      socket.once("error", fail);
    });
  }

  #tls() {
    return { cert: this.#client.certificate, key: this.#client.key, rejectUnauthorized: false };
  }
}

const nothing = { apiVersion: "", kind: "", metadata: { name: "" } };

function hostOf({ host, port }: Target): string {
  return isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`;
}

function withQuery(path: string, query: URLSearchParams): string {
  const text = query.toString();
  return text === "" ? path : `${path}?${text}`;
}

// The kubelet takes a flag's presence for true, so false ones must not be passed on.
function keepTrue(query: URLSearchParams, from: string, to: string, value: string): void {
  const isSet = query.has(from) && query.get(from) !== "false" && query.get(from) !== "0";
  query.delete(from);
  if (isSet) query.set(to, value);
}

function containerOf(pod: Pod, wanted: string): string {
  const { name } = pod.metadata;
  const all = [...pod.spec.containers, ...(pod.spec.initContainers ?? []), ...(pod.spec.ephemeralContainers ?? [])];
  if (wanted !== "") {
    if (all.some((c) => c.name === wanted)) return wanted;
    throw badRequest(`container ${wanted} is not valid for pod ${name}`);
  }
  const preferred = pod.metadata.annotations?.["kubectl.kubernetes.io/default-container"];
  const [first] = pod.spec.containers;
  if (pod.spec.containers.length === 1 && first !== undefined) return preferred ?? first.name;
  const choices = pod.spec.containers.map((c) => c.name).join(" ");
  throw badRequest(`a container name must be specified for pod ${name}, choose one of: [${choices}]`);
}

function pick(headers: Record<string, unknown>, names: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    names.flatMap((name) => {
      const value = headers[name];
      return typeof value === "string" ? [[name, value]] : [];
    }),
  );
}

function unreachable(target: Target, err: Error): ApiError {
  return new ApiError(
    500,
    "InternalError",
    `Internal error occurred: error dialing backend: dial tcp ${hostOf(target)}: ${err.message}`,
  );
}

function logError(code: number, text: string): ApiError {
  if (code === 400) return badRequest(text);
  if (code === 404) return new ApiError(404, "NotFound", `the server could not find the requested resource: ${text}`);
  return new ApiError(code, "InternalError", text);
}

async function collect(incoming: IncomingMessage, bytesMax: number): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of incoming) {
    const bytes = chunk as Buffer;
    if (size < bytesMax) chunks.push(bytes);
    size += bytes.length;
  }
  return Buffer.concat(chunks).subarray(0, bytesMax).toString("utf8");
}
