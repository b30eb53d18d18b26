import { createServer, type IncomingMessage, type RequestListener, ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { Pod } from "../../../agent/kube/types.ts";
import { type Clock, systemClock } from "../../../agent/lib/clock.ts";
import { messageOf } from "../../../agent/lib/errors.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import type { ContainerSummary, Runtime, SandboxSummary, StreamingRequest } from "../../../agent/runtime/port.ts";
import { HttpError, type ServedPods } from "../../../agent/server/port.ts";
import { createStreaming, type StreamRoute } from "../../../agent/server/streaming/streaming.ts";

export interface AgentServer {
  /** `http://…` or `https://…` without a path. */
  readonly url: string;
  readonly port: number;
  readonly metrics: MetricsRegistry;
  /** Sessions whose handler has not returned. */
  readonly running: Set<Promise<void>>;
  /** Aborts every session, as the agent's end does. */
  stop(): void;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface AgentServerOptions {
  pods: ServedPods;
  runtime: Pick<Runtime, "list" | "execSync" | "streamingURL">;
  clock?: Clock;
  extendWebSockets?: boolean;
  tls?: { cert: string; key: string };
  /** A port of loopback unless given. */
  listen?: { host: string; port: number };
}

const routes = /^\/(exec|attach|portForward|run)\/([^/]+)\/([^/]+)(?:\/([^/]+))?(?:\/([^/]+))?$/;

/** The streaming routes alone, behind a server without authentication. */
export async function startAgentServer(options: AgentServerOptions): Promise<AgentServer> {
  const { pods, runtime, clock = systemClock, extendWebSockets = true, tls } = options;
  const { host, port: wantedPort } = options.listen ?? { host: "127.0.0.1", port: 0 };
  const metrics = new MetricsRegistry();
  const streaming = createStreaming({ pods, runtime, clock, metrics, extendWebSockets });
  const stop = new AbortController();
  const running = new Set<Promise<void>>();
  const sockets = new Set<Socket>();

  const target = (request: IncomingMessage) => {
    const url = new URL(request.url ?? "/", "http://agent");
    const [, route = "", namespace = "", pod = "", third = "", fourth] = routes.exec(url.pathname) ?? [];
    const last = fourth === undefined ? { container: third, uid: third } : { uid: third, container: fourth };
    const params: Record<string, string> = { namespace, pod, ...last };
    return { route: route as "exec" | "attach" | "portForward" | "run", params, query: url.searchParams };
  };
  const respond = (response: ServerResponse, err: unknown) => {
    const status = err instanceof HttpError ? err.status : 500;
    response.writeHead(status, err instanceof HttpError ? err.headers : {}).end(messageOf(err));
  };
  const onRequest: RequestListener = (request, response) => {
    const { route, params, query } = target(request);
    const handle = route === "run" ? streaming.run : streaming[route].handle;
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    const signal = AbortSignal.any([stop.signal, gone.signal]);
    handle({ request, response, params, query, signal }).catch((err: unknown) => respond(response, err));
  };
  const onUpgrade = async (request: IncomingMessage, socket: Socket, head: Buffer) => {
    const { route, params, query } = target(request);
    const before = socket.bytesWritten;
    try {
      const { upgrade } = streaming[route as "exec"] satisfies StreamRoute;
      await upgrade({ request, socket, head, params, query, signal: stop.signal });
    } catch (err) {
      if (socket.bytesWritten === before && socket.writable) {
        const response = new ServerResponse(request);
        response.shouldKeepAlive = false;
        response.assignSocket(socket);
        respond(response, err);
      }
    }
    socket.resume();
    socket.destroySoon();
  };

  const server =
    tls === undefined ? createServer(onRequest) : createTlsServer({ ...tls, allowHalfOpen: true }, onRequest);
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket)).on("error", () => {});
  });
  server.on("secureConnection", (socket: Socket) => void socket.on("error", () => {}));
  server.on("upgrade", (request, socket: Socket, head) => {
    const session = onUpgrade(request, socket, head).finally(() => running.delete(session));
    running.add(session);
  });
  await new Promise<void>((resolve) => void server.listen(wantedPort, host, resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `${tls === undefined ? "http" : "https"}://127.0.0.1:${port}`,
    port,
    metrics,
    running,
    stop: () => stop.abort(),
    [Symbol.asyncDispose]: async () => {
      stop.abort();
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => void server.close(resolve));
    },
  };
}

/** One pod "web" in "default", with the containers "app" and "shell", the second with a terminal. */
export const webPod = {
  metadata: { name: "web", namespace: "default", uid: "uid-web" },
  spec: { containers: [{ name: "app" }, { name: "shell", tty: true }] },
} as Pod;

/** What the agent would show if it held just these pods. */
export function servedPods(...pods: Pod[]): ServedPods {
  return {
    list: () => pods,
    find: (namespace, name) => pods.find(({ metadata }) => metadata.namespace === namespace && metadata.name === name),
    status: () => undefined,
  };
}

/** A runtime in which `webPod` runs and whose sessions are at `url`; it notes what it was asked. */
export function fakeRuntimeCalls(url: () => string | Promise<string>) {
  const asked: StreamingRequest[] = [];
  const container = (id: string, name: string, createdAtMs: number, state: ContainerSummary["state"]) =>
    ({ id, name, createdAtMs, state, podUID: "uid-web" }) as ContainerSummary;
  const sandbox = (id: string, attempt: number, ready: boolean) =>
    ({ id, attempt, ready, createdAtMs: attempt }) as SandboxSummary;
  const runtime: Pick<Runtime, "list" | "execSync" | "streamingURL"> = {
    list: async () => ({
      sandboxes: [sandbox("sandbox-0", 0, true), sandbox("sandbox-2", 2, true), sandbox("sandbox-3", 3, false)],
      containers: [
        container("app-old", "app", 1, "exited"),
        container("app-1", "app", 2, "running"),
        container("shell-1", "shell", 2, "running"),
        container("gone-1", "gone", 2, "exited"),
      ],
    }),
    execSync: async (_id, command) => ({
      stdout: Buffer.from(`ran ${JSON.stringify(command)}\n`),
      stderr: Buffer.from("and complained\n"),
      exitCode: command[0] === "false" ? 1 : 0,
    }),
    streamingURL: async (request) => {
      asked.push(request);
      return `${await url()}/${request.kind}/token?x=1`;
    },
  };
  return { runtime, asked };
}
