import { createHash } from "node:crypto";
import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { defaultBuckets, type MetricsRegistry } from "../lib/metrics.ts";
import type { CredentialProvider, CredentialProviderConfig } from "./credential-provider-config.ts";
import { execProvider, type ProviderRequest, type ProviderResponse } from "./credential-provider-exec.ts";
import { authsFor, type Coordinates, type ImageCredential, keyMatches, keyringOf } from "./images-auth.ts";
import { Turns } from "./images-limits.ts";

/** A service account as the API server has it. */
export interface Account extends Coordinates {
  annotations: Readonly<Record<string, string>>;
}

/** Where service accounts and their tokens come from. Both reject with the API server's error. */
export interface AccountSource {
  /** The account that `pod` runs as; its name is given because it is not empty here. */
  account(pod: Pod, name: string): Promise<Account>;
  /** A token of that account, bound to `pod`. */
  token(pod: Pod, audience: string): Promise<string>;
}

export interface CredentialProvidersOptions {
  config: CredentialProviderConfig;
  accounts: AccountSource;
  /** The agent's environment, which plugins inherit. */
  env: NodeJS.ProcessEnv;
  /** Runs a plugin; {@link execProvider} unless given. */
  run?: typeof execProvider;
  /** Ends plugins that run. */
  stop: AbortSignal;
  clock: Clock;
  log: Logger;
  registry?: MetricsRegistry;
}

/** Credentials of the node's plugins. */
export interface CredentialProviders {
  /**
   * What the plugins know for a repository, in the order in which to try it. Never rejects: a plugin that fails is
   * logged, and the others count. Equal questions that come together are asked once. Without a pod, plugins that want the
   * token of one are not asked.
   */
  credentials(pod: Pod | undefined, repository: string): Promise<ImageCredential[]>;
}

// kubelet's: what has expired is dropped this often.
export const purgeMs = 900_000;
// Answers kept by one plugin. A node has some hundred images at most; the oldest answer goes first.
export const answersMax = 1_000;
// Processes of one plugin at once; further questions wait. Each plugin has its own, so that one that hangs holds up no other.
export const runsMax = 4;

/** Runs credential provider plugins, and keeps their answers as long as they say. */
export function createCredentialProviders(options: CredentialProvidersOptions): CredentialProviders {
  const { config, registry } = options;
  const metrics = registry === undefined ? undefined : createMetrics(registry, config.hash);
  const plugins = config.providers.map((provider) => new Plugin(provider, options, metrics));
  return {
    credentials: async (pod, repository) => {
      const answers = await Promise.all(plugins.map(async (plugin) => await plugin.ask(pod, repository)));
      return authsFor(repository, [keyringOf(answers.flat())]);
    },
  };
}

type Entry = { registry: string; auth: ImageCredential };

/** Whom a plugin is asked for, if it works with tokens. */
interface Identity {
  account: Account;
  token: string;
  annotations: Readonly<Record<string, string>>;
}

class Plugin {
  readonly #provider: CredentialProvider;
  readonly #options: CredentialProvidersOptions;
  readonly #metrics: ProviderMetrics | undefined;
  /** Times are monotonic: an answer is not kept for an hour longer because the machine's clock was set back. */
  readonly #answers = new Map<string, { auths: ProviderResponse["auths"]; expiresAtMs: number }>();
  readonly #running = new Map<string, Promise<ProviderResponse["auths"]>>();
  readonly #turns = new Turns(runsMax);
  #purgedAtMs: number;

  constructor(provider: CredentialProvider, options: CredentialProvidersOptions, metrics: ProviderMetrics | undefined) {
    this.#provider = provider;
    this.#options = options;
    this.#metrics = metrics;
    this.#purgedAtMs = options.clock.monotonic();
  }

  async ask(pod: Pod | undefined, repository: string): Promise<Entry[]> {
    const { name, matchImages } = this.#provider;
    if (!matchImages.some((pattern) => keyMatches(pattern, repository))) return [];
    try {
      const identity = await this.#identity(pod);
      if (identity === "notForThisPod") return [];
      const auths = await this.#auths(repository, identity);
      if (identity === undefined) return [...auths];
      const { uid, namespace, name: account } = identity.account;
      const serviceAccount = { uid, namespace, name: account };
      return auths.map(({ registry, auth }) => ({ registry, auth: { ...auth, serviceAccount } }));
    } catch (err) {
      const { stop, log } = this.#options;
      if (stop.aborted) return [];
      log.warn({ provider: name, image: repository, err: messageOf(err) }, "image credential provider gave no answer");
      return [];
    }
  }

  /** undefined: the plugin is asked without one. */
  async #identity(pod: Pod | undefined): Promise<Identity | "notForThisPod" | undefined> {
    const { tokens } = this.#provider;
    if (tokens === undefined) return undefined;
    const { accounts, log } = this.#options;
    const accountName = pod?.spec.serviceAccountName ?? "";
    if (pod === undefined || accountName === "") return tokens.isRequired ? "notForThisPod" : undefined;
    const account = await accounts.account(pod, accountName);
    const missing = tokens.requiredAnnotations.filter((key) => !Object.hasOwn(account.annotations, key));
    if (missing.length > 0) {
      const { namespace, name } = account;
      log.debug({ provider: this.#provider.name, namespace, name, missing }, "service account lacks annotations");
      return "notForThisPod";
    }
    const keys = [...tokens.requiredAnnotations, ...tokens.optionalAnnotations];
    const present = keys.flatMap((key) => {
      const value = Object.hasOwn(account.annotations, key) ? account.annotations[key] : undefined;
      return value === undefined ? [] : [[key, value] as const];
    });
    return {
      account,
      token: await accounts.token(pod, tokens.audience),
      annotations: Object.fromEntries(present.toSorted(([a], [b]) => (a < b ? -1 : 1))),
    };
  }

  async #auths(image: string, identity: Identity | undefined): Promise<ProviderResponse["auths"]> {
    const whose = this.#whose(identity);
    const kept = this.#kept(image, whose);
    if (kept !== undefined) return kept;
    const key = `${whose} ${image}`;
    let running = this.#running.get(key);
    if (running === undefined) {
      // One that ran meanwhile may have answered for the whole registry.
      const work = async () => this.#kept(image, whose) ?? (await this.#run(image, identity, whose));
      running = this.#turns.run(work, this.#options.stop).finally(() => this.#running.delete(key));
      this.#running.set(key, running);
    }
    return await running;
  }

  async #run(image: string, identity: Identity | undefined, whose: string): Promise<ProviderResponse["auths"]> {
    const { clock, env, stop, run = execProvider } = this.#options;
    const { name, defaultCacheDurationMs } = this.#provider;
    const startedAtMs = clock.monotonic();
    const request: ProviderRequest = {
      image,
      ...(identity === undefined
        ? {}
        : { serviceAccountToken: identity.token, serviceAccountAnnotations: identity.annotations }),
    };
    try {
      const answer = await run(this.#provider, request, { env, signal: stop });
      const keepMs = answer.cacheDurationMs ?? defaultCacheDurationMs;
      const key = answerKey(answer.cacheKeyType, image, whose);
      if (keepMs > 0) this.#keep(key, answer.auths, clock.monotonic() + keepMs);
      return answer.auths;
    } catch (err) {
      this.#metrics?.errors.inc({ plugin_name: name });
      throw err;
    } finally {
      this.#metrics?.seconds.observe({ plugin_name: name }, (clock.monotonic() - startedAtMs) / 1_000);
    }
  }

  #kept(image: string, whose: string): ProviderResponse["auths"] | undefined {
    const nowMs = this.#options.clock.monotonic();
    this.#purge(nowMs);
    for (const type of ["Image", "Registry", "Global"] as const) {
      const answer = this.#answers.get(answerKey(type, image, whose));
      if (answer !== undefined && nowMs < answer.expiresAtMs) return answer.auths;
    }
    return undefined;
  }

  #keep(key: string, auths: ProviderResponse["auths"], expiresAtMs: number): void {
    this.#answers.delete(key); // the newest stands last
    this.#answers.set(key, { auths, expiresAtMs });
    for (const oldest of this.#answers.keys()) {
      if (this.#answers.size <= answersMax) return;
      this.#answers.delete(oldest);
    }
  }

  #purge(nowMs: number): void {
    if (nowMs - this.#purgedAtMs < purgeMs) return;
    this.#purgedAtMs = nowMs;
    for (const [key, { expiresAtMs }] of this.#answers) if (expiresAtMs <= nowMs) this.#answers.delete(key);
  }

  /** Answers for one account, or for one token, are not for another; the key itself says nothing secret. */
  #whose(identity: Identity | undefined): string {
    if (identity === undefined) return "";
    const { account, token, annotations } = identity;
    const ofToken = this.#provider.tokens?.cacheType === "Token" ? token : "";
    const parts = [account.namespace, account.name, account.uid, annotations, ofToken];
    return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
  }
}

function answerKey(type: ProviderResponse["cacheKeyType"], image: string, whose: string): string {
  switch (type) {
    case "Image":
      return `${whose} image ${image}`;
    case "Registry":
      return `${whose} registry ${image.split("/", 1)[0] ?? ""}`;
    case "Global":
      return `${whose} global`;
  }
}

type ProviderMetrics = ReturnType<typeof createMetrics>;

function createMetrics(registry: MetricsRegistry, hash: string) {
  const info = registry.gauge(
    "kubelet_credential_provider_config_info",
    "Always 1; the label tells the content of the configuration of credential providers.",
    ["hash"],
  );
  info.set({ hash }, 1);
  return {
    errors: registry.counter(
      "kubelet_credential_provider_plugin_errors_total",
      "Times that a credential provider gave no answer, or none that can be used.",
      ["plugin_name"],
    ),
    seconds: registry.histogram(
      "kubelet_credential_provider_plugin_duration",
      "Time that credential providers took to answer, in seconds.",
      defaultBuckets,
      ["plugin_name"],
    ),
  };
}
