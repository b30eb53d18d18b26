import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import type { ApiClient } from "../../../agent/kube/port.ts";
import type { ConfigMap, Pod, PodSpec, Secret, TokenRequest } from "../../../agent/kube/types.ts";
import type { Clock, Timer } from "../../../agent/lib/clock.ts";
import { AgentError } from "../../../agent/lib/errors.ts";

/** A clock that moves only when told to. */
export class FakeClock implements Clock {
  nowMs = Date.UTC(2026, 0, 31, 23, 59, 59);
  #timers = new Set<{ atMs: number; fire: () => void }>();

  now = () => this.nowMs;
  monotonic = () => this.nowMs;

  after(ms: number, fn: () => void): Timer {
    const timer = { atMs: this.nowMs + ms, fire: fn };
    this.#timers.add(timer);
    return { cancel: () => this.#timers.delete(timer) };
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) {
        reject(new DOMException("aborted", "AbortError"));
        return;
      }
      const timer = this.after(ms, resolve);
      signal?.addEventListener("abort", () => {
        timer.cancel();
        reject(new DOMException("aborted", "AbortError"));
      });
    });
  }

  get pendingTimers(): number {
    return this.#timers.size;
  }

  /** Moves time forward, firing what is due in order. */
  async advance(ms: number): Promise<void> {
    const untilMs = this.nowMs + ms;
    for (;;) {
      await settle();
      const [next] = [...this.#timers].filter(({ atMs }) => atMs <= untilMs).sort((a, b) => a.atMs - b.atMs);
      if (next === undefined) break;
      this.#timers.delete(next);
      this.nowMs = Math.max(this.nowMs, next.atMs);
      next.fire();
    }
    this.nowMs = untilMs;
    await settle();
  }
}

/** Lets everything run that is ready to. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 3; i += 1) await setImmediate();
}

export function makePod(spec: Partial<PodSpec>, metadata: Partial<Pod["metadata"]> = {}): Pod {
  return {
    metadata: { name: "web", namespace: "shop", uid: "11111111-2222-3333-4444-555555555555", ...metadata },
    spec: { containers: [{ name: "app" }], ...spec },
  };
}

export function base64(text: string): string {
  return Buffer.from(text).toString("base64");
}

/** Objects that tests put in and take out. Counts reads. */
export class FakeObjects {
  configMaps = new Map<string, ConfigMap>();
  secrets = new Map<string, Secret>();
  failure: AgentError | undefined;
  #listeners = new Set<(kind: "ConfigMap" | "Secret", namespace: string, name: string) => void>();

  register(): void {}
  unregister(): void {}

  configMap = (namespace: string, name: string) => this.#find(this.configMaps, "configmap", namespace, name);
  secret = (namespace: string, name: string) => this.#find(this.secrets, "secret", namespace, name);

  onChange(listener: (kind: "ConfigMap" | "Secret", namespace: string, name: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  setConfigMap(name: string, data: Record<string, string>): void {
    this.configMaps.set(`shop/${name}`, { metadata: { name, namespace: "shop" }, data });
    for (const listener of this.#listeners) listener("ConfigMap", "shop", name);
  }

  setSecret(name: string, data: Record<string, string>): void {
    const encoded = Object.fromEntries(Object.entries(data).map(([key, value]) => [key, base64(value)]));
    this.secrets.set(`shop/${name}`, { metadata: { name, namespace: "shop" }, data: encoded });
    for (const listener of this.#listeners) listener("Secret", "shop", name);
  }

  async #find<T>(map: ReadonlyMap<string, T>, kind: string, namespace: string, name: string): Promise<T> {
    await Promise.resolve();
    if (this.failure !== undefined) throw this.failure;
    const object = map.get(`${namespace}/${name}`);
    if (object === undefined) throw new AgentError("NotFound", `${kind} "${name}" not found`);
    return object;
  }
}

/** An API server that only hands out tokens: "token-1", "token-2" … */
export class FakeTokenServer {
  requests: { namespace: string | undefined; account: string; spec: TokenRequest["spec"] }[] = [];
  /** Errors for the next requests, used up one by one. */
  failures: AgentError[] = [];
  /** What discovery tells of. */
  resources = ["serviceaccounts", "serviceaccounts/token"];
  beforeAnswer: () => Promise<void> = () => Promise.resolve();
  readonly client: ApiClient;
  readonly #clock: Clock;
  #count = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
    const request = () => Promise.resolve({ resources: this.resources.map((name) => ({ name })) });
    this.client = { createSubresource: this.#create.bind(this), request } as unknown as ApiClient;
  }

  async #create(
    _resource: unknown,
    key: { namespace?: string; name: string },
    subresource: string,
    body: TokenRequest,
  ): Promise<TokenRequest> {
    await Promise.resolve();
    if (subresource !== "token") throw new Error(`unexpected subresource ${subresource}`);
    this.requests.push({ namespace: key.namespace, account: key.name, spec: body.spec });
    await this.beforeAnswer();
    const failure = this.failures.shift();
    if (failure !== undefined) throw failure;
    this.#count += 1;
    const expiresAtMs = this.#clock.now() + (body.spec.expirationSeconds ?? 3600) * 1000;
    return {
      ...body,
      status: { token: `token-${this.#count}`, expirationTimestamp: new Date(expiresAtMs).toISOString() },
    };
  }
}

/** A directory of the test's own, removed by `cleanUp`. */
export async function makeTempDir(): Promise<{ dir: string; cleanUp: () => Promise<void> }> {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-vol-"));
  return { dir, cleanUp: () => rm(dir, { recursive: true, force: true }) };
}

/** A group and a user that files can be given to: strangers for root, for others only they themselves. */
export const strangers =
  process.getuid?.() === 0 ? { gid: 4321, uid: 1234 } : { gid: process.getgid?.() ?? 0, uid: process.getuid?.() ?? 0 };
