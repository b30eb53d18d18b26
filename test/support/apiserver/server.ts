import { randomUUID } from "node:crypto";
import { createSecureServer, type Http2SecureServer } from "node:http2";
import { isIP } from "node:net";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import { type Clock, systemClock } from "../../../agent/lib/clock.ts";
import type { Authorizer } from "./auth.ts";
import { startControllers, type ControllerOptions } from "./controllers/start.ts";
import { Faults } from "./faults.ts";
import { Front } from "./front.ts";
import { createHandler } from "./handler.ts";
import { controllerIndexes } from "./indexes.ts";
import { kubeconfigText } from "./kubeconfig.ts";
import { Objects } from "./objects.ts";
import { CertificateAuthority, type CertificateRequest, type KeyPair } from "./pki.ts";
import { NodeProxy } from "./proxy.ts";
import { Registry } from "./registry.ts";
import { RequestLog } from "./request-log.ts";
import { ServiceNetwork } from "./service-network.ts";
import { Store } from "./store.ts";
import { bootstrap } from "./bootstrap.ts";
import { TokenAuthority } from "./tokens.ts";
import type { User } from "./types.ts";
import { WatchHub } from "./watches.ts";

export interface ListenAddress {
  host: string;
  /** 0 picks a free one. */
  port: number;
}

export interface TestApiServerOptions {
  /** Default: one free port on 127.0.0.1. The first is the one in kubeconfigs. */
  listen?: readonly ListenAddress[];
  /** More names and addresses for the server's certificate, for clients that reach it otherwise. */
  names?: readonly string[];
  /** Keys of an earlier server, so that its kubeconfigs stay good. */
  keys?: ServerKeys;
  /** Certificate by which kubelets know the server; default: one of its authority, of group system:masters. */
  kubeletClient?: KeyPair;
  /** Static bearer tokens and whom they stand for. */
  tokens?: ReadonlyMap<string, User>;
  /** May refuse requests, and is asked by access reviews. Default: every known user may do everything. */
  authorizer?: Authorizer;
  /** Addresses of services; default 10.96.0.0/16. */
  serviceCIDR?: string;
  /** With it, new nodes get a podCIDR: a /24 of this /16. */
  clusterCIDR?: string;
  /** Changes remembered for each kind of object; default 5000. */
  historyMax?: number;
  /** Time between bookmarks of a watch; default 60 s. */
  bookmarkIntervalMs?: number;
  /** Watches send their headers with the first event only, as through a proxy that buffers. Default false. */
  holdWatchHeaders?: boolean;
  controllers?: ControllerOptions;
  clock?: Clock;
}

/** What must be kept to start a server again that the same kubeconfigs and tokens work with. PEM texts. */
export interface ServerKeys {
  authority: KeyPair;
  tokenKey: string;
}

/** A running server. */
export interface TestApiServer extends AsyncDisposable {
  /** `https://host:port` of the first address. */
  readonly url: string;
  readonly addresses: readonly ListenAddress[];
  /** PEM of the cluster's certificate authority. */
  readonly caCertificate: string;
  readonly keys: ServerKeys;
  readonly objects: Objects;
  readonly requests: RequestLog;
  readonly faults: Faults;
  /** Number of watches open now. */
  readonly openWatches: number;
  /** Text of a kubeconfig: `admin`, `node:NAME` (system:node:NAME), or any user by name and groups. */
  kubeconfig(who: "admin" | `node:${string}` | { name: string; groups?: string[] }, server?: string): string;
  /** A certificate of the cluster's authority, for a kubelet's serving side or a client. */
  issueCertificate(request: CertificateRequest): KeyPair;
  /** Goes away: listeners closed, connections reset. What it knows stays. */
  pause(): Promise<void>;
  /** Comes back on the same addresses. */
  resume(): Promise<void>;
  /** Ends for good. May be called more than once. */
  close(): Promise<void>;
}

const bookmarkIntervalMsDefault = 60_000; // As the API server's watch cache does.
const historyMaxDefault = 5_000;
const serviceCIDRDefault = "10.96.0.0/16";
// 2020-01-01. Revisions count from the milliseconds since then, so that they grow over restarts without any state.
const revisionEpochMs = 1_577_836_800_000;

/** Starts a server. It is test equipment: in memory, for clusters of a few nodes. */
export async function startTestApiServer(options: TestApiServerOptions = {}): Promise<TestApiServer> {
  const {
    listen = [{ host: "127.0.0.1", port: 0 }],
    names = [],
    tokens: known = new Map<string, User>(),
    authorizer,
    controllers = {},
    clock = systemClock,
    historyMax = historyMaxDefault,
    bookmarkIntervalMs = bookmarkIntervalMsDefault,
    serviceCIDR = serviceCIDRDefault,
    holdWatchHeaders = false,
  } = options;
  const authority =
    options.keys === undefined ? CertificateAuthority.create() : new CertificateAuthority(options.keys.authority);
  const store = new Store(Date.now() - revisionEpochMs, historyMax, controllerIndexes);
  const network = new ServiceNetwork(serviceCIDR);
  const tokens = new TokenAuthority(store, clock, options.keys?.tokenKey);
  const registry = new Registry(store, {
    clock,
    network,
    serviceAccountAdmission: controllers.serviceAccounts ?? true,
    clusterCIDR: options.clusterCIDR,
    taintNewNodes: controllers.nodeLifecycle ?? false,
  });
  const watches = new WatchHub(store, clock, { bookmarkIntervalMs, holdHeaders: holdWatchHeaders });
  const requests = new RequestLog();

  // In Linux's abstract name space: nothing stays on disk, however the process ends.
  const backendPath = `\0test-apiserver-${randomUUID()}`;
  const front = new Front(backendPath);
  const faults = new Faults({
    dropConnections: () => front.dropConnections(),
    setHalfOpen: (isOn) => front.setHalfOpen(isOn),
    cutWatches: (match, midLine) => watches.cut(match, midLine),
    silenceWatches: (match, isSilent) => watches.silence(match, isSilent),
    compact: (storage) => store.compact(storage),
  });

  const addresses: ListenAddress[] = [];
  for (const { host, port } of listen) addresses.push({ host, port: await front.listen(host, port) });
  const [first = { host: "127.0.0.1", port: 0 }] = addresses;
  const reachable = first.host === "0.0.0.0" || first.host === "::" ? "127.0.0.1" : first.host;
  const url = `https://${isIP(reachable) === 6 ? `[${reachable}]` : reachable}:${first.port}`;

  const pair = authority.issue({
    commonName: "kube-apiserver",
    usage: "server",
    names: [
      ...new Set([
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        network.address(1),
        ...addresses.map((a) => a.host),
        ...names,
      ]),
    ],
  });
  const kubeletClient =
    options.kubeletClient ??
    authority.issue({
      commonName: "kube-apiserver-kubelet-client",
      organizations: ["system:masters"],
      usage: "client",
    });
  const proxy = new NodeProxy(store, kubeletClient);
  const handler = createHandler({
    registry,
    tokens,
    known,
    authorizer,
    watches,
    requests,
    faults,
    proxy,
    clock,
    advertised: `${reachable}:${first.port}`,
  });
  const backend = createSecureServer({
    key: pair.key,
    cert: pair.certificate,
    ca: authority.certificate,
    allowHTTP1: true,
    requestCert: true,
    rejectUnauthorized: false,
    settings: { maxConcurrentStreams: 250 }, // --http2-max-streams-per-connection's default
  });
  backend.on("request", handler.onRequest);
  backend.on("upgrade", handler.onUpgrade);
  // A peer that breaks a handshake or a connection off is no event for the server as a whole.
  backend.on("secureConnection", (socket: TLSSocket) => socket.on("error", () => socket.destroy()));
  backend.on("tlsClientError", () => {});
  backend.on("sessionError", () => {});
  backend.on("clientError", (_err: Error, socket: Duplex) => socket.destroy());
  await listenOn(backend, backendPath);

  bootstrap(registry, { url, host: reachable, port: first.port });
  const stopControllers = startControllers(registry, controllers, { clock, authority });

  let closing: Promise<void> | undefined;
  const close = async () => {
    stopControllers();
    await front.close();
    proxy.close();
    await handler.settled();
    await new Promise<void>((resolve) => backend.close(() => resolve()));
  };

  return {
    url,
    addresses,
    caCertificate: authority.certificate,
    keys: { authority: { certificate: authority.certificate, key: authority.key }, tokenKey: tokens.key },
    objects: new Objects(registry),
    requests,
    faults,
    get openWatches() {
      return watches.size;
    },
    kubeconfig: (who, server = url) => {
      const { name, groups } = identityOf(who);
      const clientPair = authority.issue({ commonName: name, organizations: groups, usage: "client" });
      const certificateAuthority = authority.certificate;
      return kubeconfigText({ server, certificateAuthority, userName: name, credentials: { clientPair } });
    },
    issueCertificate: (request) => authority.issue(request),
    pause: () => front.close(),
    resume: () => front.reopen(),
    close: () => (closing ??= close()),
    [Symbol.asyncDispose]: () => (closing ??= close()),
  };
}

function identityOf(who: "admin" | `node:${string}` | { name: string; groups?: string[] }): {
  name: string;
  groups: string[];
} {
  if (typeof who === "object") return { name: who.name, groups: who.groups ?? [] };
  if (who === "admin") return { name: "kubernetes-admin", groups: ["system:masters"] };
  return { name: `system:node:${who.slice("node:".length)}`, groups: ["system:nodes"] };
}

async function listenOn(server: Http2SecureServer, path: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, () => {
      server.off("error", reject);
      resolve();
    });
  });
}
