import type { Clock } from "../../lib/clock.ts";
import type { MetricsRegistry } from "../../lib/metrics.ts";
import { isWebSocket, offeredProtocols } from "../../lib/websocket/handshake.ts";
import type { Runtime, StreamingRequest } from "../../runtime/port.ts";
import { type Exchange, type Handler, HttpError, type ServedPods, type Upgrade, type UpgradeHandler } from "../port.ts";
import { plainError } from "../respond.ts";
import { serveRemoteCommand } from "./remote-command.ts";
import { offeredTunnels, remoteCommandProtocol, wantedPorts, type WantedStreams, wantedStreams } from "./request.ts";
import { createRun } from "./run.ts";
import { splice } from "./splice.ts";
import { containerOf, hasTerminal, podOf, sandboxOf, sessionURL } from "./target.ts";
import { serveTunnel } from "./tunnel.ts";

export interface StreamingDeps {
  pods: ServedPods;
  runtime: Pick<Runtime, "list" | "execSync" | "streamingURL">;
  clock: Clock;
  metrics: MetricsRegistry;
  /** Feature gate ExtendWebSocketsToKubelet: serve what WebSocket clients speak, and runtimes do not. */
  extendWebSockets: boolean;
}

/** A route whose clients upgrade: `handle` answers those who do not. */
export interface StreamRoute {
  readonly handle: Handler;
  readonly upgrade: UpgradeHandler;
}

/** Handlers of the streaming routes. Parameters: `namespace`, `pod`, `container` and, where the route has it, `uid`. */
export interface Streaming {
  readonly exec: StreamRoute;
  readonly attach: StreamRoute;
  readonly portForward: StreamRoute;
  readonly run: Handler;
}

type Asked = Pick<Exchange, "request" | "params" | "query">;

/** What a request to exec or attach leads to, once everything about it is known to be right. */
interface CommandSession {
  readonly request: StreamingRequest;
  readonly wanted: WantedStreams;
}

/** Makes the handlers. They hold nothing but the sessions under way. */
export function createStreaming(deps: StreamingDeps): Streaming {
  const { pods, runtime, clock, extendWebSockets } = deps;
  const translated = deps.metrics.counter(
    "kubelet_websocket_streaming_requests_total",
    "Streaming requests over WebSocket that the node agent translated or tunnelled itself.",
    ["subresource"],
  );

  const exec = async ({ params, query }: Asked): Promise<CommandSession> => {
    const wanted = wantedStreams(query);
    const pod = podOf(pods, params);
    const containerID = await containerOf(runtime, pod, params.container ?? "");
    return { request: { kind: "exec", containerID, command: query.getAll("command"), ...wanted }, wanted };
  };
  const attach = async ({ params, query }: Asked): Promise<CommandSession> => {
    const asked = wantedStreams(query);
    const pod = podOf(pods, params);
    const name = params.container ?? "";
    const containerID = await containerOf(runtime, pod, name);
    const wanted = { ...asked, tty: hasTerminal(pod, name) };
    return { request: { kind: "attach", containerID, ...wanted }, wanted };
  };
  const portForward = async ({ request, params, query }: Asked): Promise<StreamingRequest> => {
    const isTunnel = extendWebSockets && offeredTunnels(request).length > 0;
    const ports = isWebSocket(request) && !isTunnel ? wantedPorts(query) : [];
    const pod = podOf(pods, params);
    if (params.uid !== undefined && params.uid !== "" && params.uid !== pod.metadata.uid) {
      throw new HttpError(404, "pod not found");
    }
    return { kind: "portforward", sandboxID: await sandboxOf(runtime, pod), ports };
  };

  const commandRoute = (
    subresource: "exec" | "attach",
    what: string,
    prepare: (asked: Asked) => Promise<CommandSession>,
  ): StreamRoute => ({
    handle: async (exchange) => {
      await prepare(exchange);
      throw plainError(500, "Upgrade request required");
    },
    upgrade: legible(what, async (upgrade) => {
      const { request, wanted } = await prepare(upgrade);
      const url = await sessionURL(runtime, request);
      if (extendWebSockets && isWebSocket(upgrade.request) && offersV5(upgrade)) {
        translated.inc({ subresource });
        await serveRemoteCommand({ upgrade, url, wanted, what, clock });
      } else {
        await splice(upgrade, url, clock);
      }
    }),
  });

  return {
    exec: commandRoute("exec", "executing command in container", exec),
    attach: commandRoute("attach", "attaching to container", attach),
    portForward: {
      handle: async (exchange) => {
        await portForward(exchange);
        throw plainError(500, "Upgrade request required");
      },
      upgrade: legible("forwarding ports", async (upgrade) => {
        const url = await sessionURL(runtime, await portForward(upgrade));
        if (extendWebSockets && isWebSocket(upgrade.request) && offeredTunnels(upgrade.request).length > 0) {
          translated.inc({ subresource: "portforward" });
          await serveTunnel(upgrade, url, clock);
        } else {
          await splice(upgrade, url, clock);
        }
      }),
    },
    run: createRun({ pods, runtime }),
  };
}

/**
 * Clients of the field try to read the answer to a refused upgrade as a Status in YAML: a text of the form `one: other` is a
 * valid one, whose message is empty, and that is all that kubectl shows then. With a second colon it is just text.
 */
function legible(what: string, serve: UpgradeHandler): UpgradeHandler {
  return async (upgrade) => {
    try {
      await serve(upgrade);
    } catch (err) {
      if (!(err instanceof HttpError) || !err.message.includes(": ")) throw err;
      throw new HttpError(err.status, `error ${what}: ${err.message}`, err.headers);
    }
  };
}

function offersV5({ request }: Upgrade): boolean {
  return offeredProtocols(request).includes(remoteCommandProtocol);
}
