import type { ApiClient, Informer, StartInformer, Store, StoreChange } from "../../../agent/kube/port.ts";
import type { ConfigMap, KubeObject } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import type { FakeClock } from "./support.ts";

/** One object at a fake API server, watched by fake informers that sync only when told. */
export class FakeServer {
  object: ConfigMap | undefined = configMap("1");
  gets = 0;
  /** resourceVersion that each GET asked for. */
  asked: (string | undefined)[] = [];
  getFailures: AgentError[] = [];
  getDelayMs = 0;
  watches: FakeWatch[] = [];
  readonly clock: FakeClock;
  readonly client: ApiClient;

  constructor(clock: FakeClock) {
    this.clock = clock;
    this.client = {
      get: async (_resource: unknown, _key: unknown, options?: { resourceVersion?: string }) => {
        this.gets += 1;
        this.asked.push(options?.resourceVersion);
        const { object } = this;
        if (this.getDelayMs > 0) await clock.sleep(this.getDelayMs);
        const failure = this.getFailures.shift();
        if (failure !== undefined) throw failure;
        if (object === undefined) throw new AgentError("NotFound", "not there");
        return object;
      },
    } as unknown as ApiClient;
  }

  startInformer: StartInformer = <T extends KubeObject>(
    _resource: unknown,
    options: { namespace?: string; fieldSelector?: string; watchSecondsMin?: number; trim?: (object: T) => T },
    stop: AbortSignal,
  ) => {
    const query = `${options.namespace}?${options.fieldSelector} for ${options.watchSecondsMin} s`;
    const watch = new FakeWatch(this, query, stop);
    this.watches.push(watch);
    return watch as unknown as Informer<T>;
  };

  get open(): FakeWatch[] {
    return this.watches.filter(({ stop }) => !stop.aborted);
  }

  set(object: ConfigMap | undefined): void {
    const old = this.object;
    this.object = object;
    for (const watch of this.open) if (watch.hasSynced) watch.emit(old, object);
  }
}

class FakeWatch {
  hasSynced = false;
  stopped = Promise.resolve();
  listeners = new Set<(change: StoreChange<ConfigMap>) => void>();
  waiters: (() => void)[] = [];
  readonly server: FakeServer;
  readonly query: string;
  readonly stop: AbortSignal;
  readonly store: Pick<Store<ConfigMap>, "get" | "synced" | "subscribe"> & { readonly hasSynced: boolean };

  constructor(server: FakeServer, query: string, stop: AbortSignal) {
    this.server = server;
    this.query = query;
    this.stop = stop;
    const hasSynced = () => this.hasSynced;
    this.store = {
      get hasSynced() {
        return hasSynced();
      },
      get: (key) => (key === "shop/settings" ? server.object : undefined),
      synced: (signal) =>
        new Promise((resolve, reject) => {
          if (this.hasSynced) resolve();
          this.waiters.push(resolve);
          signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
        }),
      subscribe: (listener) => {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
      },
    };
  }

  sync(): void {
    this.hasSynced = true;
    for (const resolve of this.waiters) resolve();
    if (this.server.object !== undefined) this.emit(undefined, this.server.object);
  }

  emit(old: ConfigMap | undefined, object: ConfigMap | undefined): void {
    for (const listener of this.listeners) listener({ key: "shop/settings", old, object });
  }
}

export function configMap(resourceVersion: string, more: Partial<ConfigMap> = {}): ConfigMap {
  return { metadata: { name: "settings", namespace: "shop", resourceVersion }, data: { v: resourceVersion }, ...more };
}
