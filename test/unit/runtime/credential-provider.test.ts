import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import {
  type Account,
  answersMax,
  createCredentialProviders,
  type CredentialProvidersOptions,
  purgeMs,
  runsMax,
} from "../../../agent/runtime/credential-provider.ts";
import type { CredentialProvider } from "../../../agent/runtime/credential-provider-config.ts";
import {
  execProvider,
  execTimeoutMs,
  outputBytesMax,
  parseResponse,
} from "../../../agent/runtime/credential-provider-exec.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { settable } from "./images-support.ts";

const v1 = "credentialprovider.kubelet.k8s.io/v1";
const image = "registry.io/team/app";
const minute = 60_000;

let dir: string;
let calls: string;
const lines: string[] = [];
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-provider-"));
  calls = join(dir, "calls");
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
});
beforeEach(async () => {
  lines.length = 0;
  await writeFile(calls, "");
});

const answerOf = (change: Record<string, unknown> = {}) => ({
  apiVersion: v1,
  kind: "CredentialProviderResponse",
  cacheKeyType: "Image",
  auth: { "registry.io": { username: "u", password: "s3cret-password" } },
  ...change,
});

/** A plugin that notes what it was asked and says `answer`. */
async function plugin(name: string, answer: unknown, change: Partial<CredentialProvider> = {}) {
  const script = [
    `cat >> ${calls}`,
    `echo >> ${calls}`,
    `echo '${typeof answer === "string" ? answer : JSON.stringify(answer)}'`,
  ];
  return await scripted(name, script, change);
}

async function scripted(
  name: string,
  script: readonly string[],
  change: Partial<CredentialProvider> = {},
): Promise<CredentialProvider> {
  const file = join(dir, name);
  await writeFile(file, `#!/bin/sh\n${script.join("\n")}\n`);
  await chmod(file, 0o755);
  return {
    ...{ name, file, apiVersion: v1, args: [], env: [], matchImages: ["registry.io", "*.example.com"] },
    defaultCacheDurationMs: 10 * minute,
    ...change,
  };
}

function open(providers: CredentialProvider[], change: Partial<CredentialProvidersOptions> = {}) {
  const clock = new FakeClock();
  const plugins = createCredentialProviders({
    config: { providers, hash: "sha256:1" },
    accounts: { account: async () => account(), token: async () => "t0ken-of-pod" },
    env: { PATH: process.env["PATH"] },
    stop: new AbortController().signal,
    clock,
    log: createLogger({ level: "debug", stream: { write: (line: string) => void lines.push(line) } }),
    ...change,
  });
  return { clock, plugins };
}

const podOf = (serviceAccountName?: string): Pod => ({
  metadata: { name: "web", namespace: "ns", uid: "u1" },
  spec: { containers: [], ...(serviceAccountName === undefined ? {} : { serviceAccountName }) },
});
const pod = podOf();
const account = (change: Partial<Account> = {}): Account => ({
  namespace: "ns",
  name: "builder",
  uid: "sa1",
  annotations: {},
  ...change,
});
const credential = { username: "u", password: "s3cret-password" };

async function requests(): Promise<Record<string, unknown>[]> {
  const text = await readFile(calls, "utf8");
  const found = text.split("\n").filter((line) => line !== "");
  return found.map((line) => JSON.parse(line) as Record<string, unknown>);
}

test("a plugin is asked for the repository and its answer matched like any other key", async () => {
  const { plugins } = open([
    await plugin("p", answerOf({ auth: { "registry.io/other": credential, "registry.io": credential } })),
  ]);
  expect(await plugins.credentials(pod, image)).toEqual([credential]);
  expect(await requests()).toEqual([{ kind: "CredentialProviderRequest", apiVersion: v1, image }]);
});

test("it gets its arguments, its variables, and those of the agent", async () => {
  const change = { args: ["a b", "$HOME"], env: [{ name: "REGION", value: "eu west" }] };
  const provider = await scripted(
    "env",
    [
      `printf '${JSON.stringify(answerOf({ auth: { "registry.io": { username: "%s", password: "%s" } } }))}' "$1$2" "$REGION$FROM"`,
    ],
    change,
  );
  const { plugins } = open([provider], { env: { FROM: "agent", REGION: "overridden" } });
  expect(await plugins.credentials(pod, image)).toEqual([{ username: "a b$HOME", password: "eu westagent" }]);
});

test("images that it does not match are none of its business", async () => {
  const { plugins } = open([await plugin("p", answerOf())]);
  for (const other of ["docker.io/library/busybox", "a.b.example.com/app", "registry.io:5000/app"]) {
    expect(await plugins.credentials(pod, other)).toEqual([]);
  }
  expect(await requests()).toEqual([]);
});

test("of several plugins the more specific key comes first, then the order of the configuration", async () => {
  const auth = (username: string) => ({ username, password: "" });
  const { plugins } = open([
    await plugin("first", answerOf({ auth: { "registry.io": auth("wide") } })),
    await plugin("second", answerOf({ auth: { "registry.io": auth("wide2"), "registry.io/team": auth("team") } })),
  ]);
  const found = await plugins.credentials(pod, image);
  expect(found.map(({ username }) => username)).toEqual(["team", "wide", "wide2"]);
});

const keeping: { name: string; answer: Record<string, unknown>; also: string[]; notFor: string[] }[] = [
  { name: "an image's", answer: { cacheKeyType: "Image" }, also: [], notFor: ["registry.io/other"] },
  {
    name: "a registry's",
    answer: { cacheKeyType: "Registry" },
    also: ["registry.io/other"],
    notFor: ["a.example.com/app"],
  },
  { name: "everybody's", answer: { cacheKeyType: "Global" }, also: ["a.example.com/app"], notFor: [] },
];
for (const { name, answer, also, notFor } of keeping) {
  test(`an answer that is ${name} is kept for that, as long as it says`, async () => {
    const { clock, plugins } = open([await plugin("p", answerOf({ ...answer, cacheDuration: "1m" }))]);
    for (const wanted of [image, image, ...also]) await plugins.credentials(pod, wanted);
    expect(await requests()).toHaveLength(1);
    for (const wanted of notFor) await plugins.credentials(pod, wanted);
    expect(await requests()).toHaveLength(1 + notFor.length);
    await clock.advance(minute);
    await plugins.credentials(pod, image);
    expect(await requests()).toHaveLength(2 + notFor.length);
  });
}

test("without a duration the configured one counts, and 0 keeps nothing", async () => {
  const { clock, plugins } = open([await plugin("p", answerOf())]);
  await plugins.credentials(pod, image);
  await clock.advance(10 * minute - 1);
  await plugins.credentials(pod, image);
  expect(await requests()).toHaveLength(1);
  await clock.advance(1);
  await plugins.credentials(pod, image);
  expect(await requests()).toHaveLength(2);

  const { plugins: forgetful } = open([await plugin("p", answerOf({ cacheDuration: "0s" }))]);
  await forgetful.credentials(pod, image);
  await forgetful.credentials(pod, image);
  expect(await requests()).toHaveLength(4);
});

test("an answer is kept as long as it says, also when the machine's clock is set", async () => {
  const even = new FakeClock();
  const clock = settable(even);
  const { plugins } = open([await plugin("p", answerOf({ cacheDuration: "1m" }))], { clock });
  await plugins.credentials(pod, image);
  clock.set(60 * minute);
  await plugins.credentials(pod, image);
  expect(await requests()).toHaveLength(1);
  clock.set(-120 * minute);
  await even.advance(minute);
  await plugins.credentials(pod, image);
  expect(await requests()).toHaveLength(2);
});

test("equal questions that come together are asked once", async () => {
  const { plugins } = open([await plugin("p", answerOf({ cacheDuration: "0s" }))]);
  const all = [1, 2, 3].map(async () => await plugins.credentials(pod, image));
  expect(await Promise.all(all)).toEqual([[credential], [credential], [credential]]);
  expect(await requests()).toHaveLength(1);
});

test("a plugin runs four times at once, and one that hangs holds up no other", async () => {
  const running: (() => void)[] = [];
  const run: typeof execProvider = async ({ name }) => {
    if (name === "hangs") await new Promise<void>((resolve) => void running.push(resolve));
    return { cacheKeyType: "Image", cacheDurationMs: undefined, auths: [] };
  };
  const stop = new AbortController();
  const hangs = await plugin("hangs", "");
  const { plugins } = open([hangs, await plugin("good", "", { matchImages: ["good.io"] })], { run, stop: stop.signal });
  const all = Array.from({ length: 10 }, async (_, n) => await plugins.credentials(pod, `${image}${n}`));
  await settle();
  expect(running).toHaveLength(runsMax);
  expect(await plugins.credentials(pod, "good.io/app")).toEqual([]);
  running.shift()?.();
  await settle();
  expect(running).toHaveLength(runsMax);
  expect(runsMax).toBe(4);
  stop.abort();
  for (const end of running) end();
  await Promise.all(all);
  expect(lines).toEqual([]);
});

test("an answer for a whole registry spares those who wait for their turn", async () => {
  let asked = 0;
  const run: typeof execProvider = async () => {
    asked += 1;
    await settle();
    return {
      cacheKeyType: "Registry",
      cacheDurationMs: undefined,
      auths: [{ registry: "registry.io", auth: credential }],
    };
  };
  const { plugins } = open([await plugin("p", "")], { run });
  const all = Array.from({ length: 20 }, async (_, n) => await plugins.credentials(pod, `${image}${n}`));
  for (const found of await Promise.all(all)) expect(found).toEqual([credential]);
  expect(asked).toBe(runsMax);
});

test("expired answers are dropped in time, and no more than a thousand are kept", async () => {
  let asked = 0;
  const run: typeof execProvider = async () => {
    asked += 1;
    return { cacheKeyType: "Image", cacheDurationMs: undefined, auths: [] };
  };
  const { clock, plugins } = open([await plugin("p", "")], { run });
  const ask = async (n: number) => await plugins.credentials(pod, `${image}${n}`);
  for (let n = 0; n <= answersMax; n += 1) await ask(n);
  expect(asked).toBe(answersMax + 1);
  await ask(answersMax); // the newest
  await ask(1);
  expect(asked).toBe(answersMax + 1);
  await ask(0); // the oldest had to go
  expect(asked).toBe(answersMax + 2);
  await clock.advance(purgeMs);
  await ask(2);
  expect(asked).toBe(answersMax + 3);
  expect([purgeMs, answersMax]).toEqual([15 * minute, 1_000]);
});

test("a plugin that takes longer than a minute is killed, one that writes too much is not believed", async () => {
  const signal = new AbortController().signal;
  const hangs = await scripted("slow", ["exec sleep 30"]);
  await expect(execProvider(hangs, { image }, { env: {}, signal, timeoutMs: 50 })).rejects.toThrow(
    /^image credential provider slow: .*\/slow did not end within 50 ms$/,
  );
  expect(execTimeoutMs).toBe(minute);
  const chatty = await scripted("chatty", [`head -c ${outputBytesMax + 1} /dev/zero`]);
  await expect(execProvider(chatty, { image }, { env: {}, signal })).rejects.toThrow("more than 1048576 bytes");
});

const broken: { name: string; script: string[]; says: string }[] = [
  { name: "fails", script: ["echo no network >&2", "exit 3"], says: "exited with 3" },
  { name: "does not answer JSON", script: ["echo s3cret-password"], says: "its output is not JSON" },
  { name: "answers nothing", script: [], says: "its output is not JSON" },
  { name: "answers something else", script: ["echo '{}'"], says: "not a CredentialProviderResponse" },
];
for (const { name, script, says } of broken) {
  test(`a plugin that ${name} is logged and counted, and others count all the same`, async () => {
    const registry = new MetricsRegistry();
    const providers = [await scripted("broken", script), await plugin("good", answerOf())];
    const { plugins } = open(providers, { registry });
    expect(await plugins.credentials(pod, image)).toEqual([credential]);
    const warnings = lines.filter((line) => line.includes('"warn"'));
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain(says);
    expect(lines.join()).not.toContain("s3cret-password");
    const text = await metricsText(registry);
    expect(text).toContain('kubelet_credential_provider_plugin_errors_total{plugin_name="broken"} 1');
    expect(text).toContain('kubelet_credential_provider_plugin_duration_count{plugin_name="good"} 1');
    expect(text).toContain('kubelet_credential_provider_config_info{hash="sha256:1"} 1');
  });
}

test("an answer is checked field by field, and never quoted", () => {
  const parse = (change: Record<string, unknown>) => {
    try {
      parseResponse(JSON.stringify(answerOf(change)), { name: "p", apiVersion: v1 });
      return "fine";
    } catch (err) {
      if (!(err instanceof AgentError)) throw err;
      expect(err.message).not.toContain("s3cret");
      return err.message.replace("image credential provider p: ", "");
    }
  };
  expect(parse({})).toBe("fine");
  expect(parse({ auth: null })).toBe("fine");
  expect(parse({ apiVersion: "credentialprovider.kubelet.k8s.io/v1beta1" })).toMatch(
    /^it answered in another apiVersion/,
  );
  expect(parse({ cacheKeyType: "Pod" })).toMatch(/^cacheKeyType is none of Image, Registry, Global/);
  expect(parse({ cacheDuration: "s3cret" })).toMatch(/^cacheDuration is not a duration/);
  expect(parse({ cacheDuration: 5 })).toMatch(/^cacheDuration is not a duration/);
  expect(parse({ auth: ["s3cret"] })).toBe("auth is not a map");
  expect(parse({ auth: { "a.io": { username: 1, password: "s3cret" } } })).toBe(
    "auth of a.io has no username and password",
  );
  expect(parse({ auth: { "a.io": "s3cret" } })).toBe("auth of a.io has no username and password");
});

test("a plugin that hangs is given up when the agent stops, though what it started holds its output open", async () => {
  const pidFile = join(dir, "pid");
  const provider = await scripted("hangs", [
    "sleep 30 &",
    `echo $! > ${pidFile}.new; mv ${pidFile}.new ${pidFile}`,
    "wait",
  ]);
  const stop = new AbortController();
  const { plugins } = open([provider], { stop: stop.signal });
  const asked = plugins.credentials(pod, image);
  await expect.poll(async () => await readFile(pidFile, "utf8").catch(() => "")).not.toBe("");
  try {
    stop.abort();
    expect(await asked).toEqual([]);
    expect(lines.filter((line) => line.includes('"warn"'))).toEqual([]);
  } finally {
    process.kill(Number(await readFile(pidFile, "utf8")), "SIGKILL");
  }
});

test("how a plugin ended is told, and nothing of what it complains about", async () => {
  const script = ["echo 'short ba$e64: czNjcmV0' >&2", "cat >&2", "exit 1"];
  const provider = await scripted("leaks", script, { env: [{ name: "KEY", value: "k3y" }] });
  const request = { image, serviceAccountToken: "t0ken-of-pod" };
  const options = { env: {}, signal: new AbortController().signal };
  await expect(execProvider(provider, request, options)).rejects.toThrow(
    /^image credential provider leaks: \S+\/leaks exited with 1; run it by hand to see why$/,
  );
});

const tokens = {
  audience: "registry",
  cacheType: "ServiceAccount" as const,
  isRequired: true,
  requiredAnnotations: ["role"],
  optionalAnnotations: ["region"],
};

test("a plugin with tokens gets one for the pod's account, and the annotations it asked for", async () => {
  const asked: string[] = [];
  const { plugins } = open([await plugin("p", answerOf(), { tokens })], {
    accounts: {
      account: async (_pod, name) => account({ name, annotations: { role: "r", region: "eu", other: "hidden" } }),
      token: async ({ metadata }, audience) => {
        asked.push(`${metadata.name} ${audience}`);
        return "t0ken-of-pod";
      },
    },
  });
  const serviceAccount = { namespace: "ns", name: "builder", uid: "sa1" };
  expect(await plugins.credentials(podOf("builder"), image)).toEqual([{ ...credential, serviceAccount }]);
  expect(asked).toEqual(["web registry"]);
  const [request] = await requests();
  expect(request).toMatchObject({
    serviceAccountToken: "t0ken-of-pod",
    serviceAccountAnnotations: { region: "eu", role: "r" },
  });
  expect(lines.join()).not.toContain("t0ken");
});

test("without the account or its annotations it is not asked; where it may do without, it gets no token", async () => {
  const required = await plugin("required", answerOf(), { tokens });
  const { plugins } = open([required]);
  expect(await plugins.credentials(podOf(), image)).toEqual([]);
  expect(await plugins.credentials(podOf("builder"), image)).toEqual([]);
  expect(await requests()).toEqual([]);
  expect(lines.filter((line) => line.includes('"warn"'))).toEqual([]);

  const odd = { ...tokens, requiredAnnotations: ["constructor"], optionalAnnotations: [] };
  const { plugins: strict } = open([await plugin("odd", answerOf(), { tokens: odd })]);
  expect(await strict.credentials(podOf("builder"), image)).toEqual([]);
  expect(await requests()).toEqual([]);

  const optional = { ...tokens, isRequired: false, requiredAnnotations: [] };
  const { plugins: lenient } = open([await plugin("optional", answerOf(), { tokens: optional })]);
  expect(await lenient.credentials(podOf(), image)).toEqual([credential]);
  expect(await requests()).toEqual([{ kind: "CredentialProviderRequest", apiVersion: v1, image }]);
});

test("a token that cannot be had is logged, and the plugin not asked", async () => {
  const free = { ...tokens, requiredAnnotations: [] };
  const { plugins } = open([await plugin("p", answerOf(), { tokens: free })], {
    accounts: {
      account: async () => account(),
      token: async () => await Promise.reject(new AgentError("Forbidden", "audience not allowed")),
    },
  });
  expect(await plugins.credentials(podOf("builder"), image)).toEqual([]);
  expect(lines.join()).toContain("audience not allowed");
  expect(await requests()).toEqual([]);
});

for (const { cacheType, sameAccount } of [
  { cacheType: "ServiceAccount" as const, sameAccount: 1 },
  { cacheType: "Token" as const, sameAccount: 2 },
]) {
  test(`answers kept by ${cacheType} are for no other`, async () => {
    const whose = { ...tokens, cacheType, requiredAnnotations: [] };
    let n = 0;
    let present = account();
    const { plugins } = open([await plugin("p", answerOf(), { tokens: whose })], {
      accounts: { account: async () => present, token: async () => `t0ken-${(n += 1)}` },
    });
    await plugins.credentials(podOf("builder"), image);
    await plugins.credentials(podOf("builder"), image);
    expect(await requests()).toHaveLength(sameAccount);
    for (const other of [
      account({ uid: "sa2" }),
      account({ namespace: "other" }),
      account({ annotations: { region: "us" } }),
    ]) {
      present = other;
      await plugins.credentials(podOf("builder"), image);
    }
    expect(await requests()).toHaveLength(sameAccount + 3);
  });
}
