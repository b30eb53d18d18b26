import { expect, test } from "vitest";
import type { Secret } from "../../../agent/kube/types.ts";
import {
  authsFor as credentialsFor,
  type Keyring,
  keyMatches,
  keyringFromDockerConfig,
  keyringFromSecrets,
  stripSource,
} from "../../../agent/runtime/images-auth.ts";

const authsFor = (image: string, keyrings: Keyring[]) => credentialsFor(image, keyrings).map(stripSource);

const user = (username: string) => ({ username, password: "p" });

function secret(name: string, auths: Record<string, unknown>, type = "kubernetes.io/dockerconfigjson"): Secret {
  const isJSON = type === "kubernetes.io/dockerconfigjson";
  const content = JSON.stringify(isJSON ? { auths } : auths);
  return {
    metadata: { namespace: "web", name },
    type,
    data: { [isJSON ? ".dockerconfigjson" : ".dockercfg"]: Buffer.from(content).toString("base64") },
  };
}

const matches: { key: string; repository: string; want: boolean }[] = [
  { key: "quay.io", repository: "quay.io/team/app", want: true },
  { key: "quay.io/team", repository: "quay.io/team/app", want: true },
  { key: "quay.io/other", repository: "quay.io/team/app", want: false },
  { key: "*.io", repository: "quay.io/app", want: true },
  { key: "*.azurecr.io", repository: "mine.azurecr.io/app", want: true },
  { key: "*.azurecr.io", repository: "a.b.azurecr.io/app", want: false },
  { key: "*", repository: "quay.io/app", want: false },
  { key: "*.*", repository: "quay.io/app", want: true },
  { key: "qu?y.io", repository: "quay.io/app", want: true },
  { key: "reg-[0-9].io", repository: "reg-7.io/app", want: true },
  { key: "reg-[^0-9].io", repository: "reg-7.io/app", want: false },
  { key: "reg-[^0-9].io", repository: "reg-x.io/app", want: true },
  { key: "reg-[x7].io", repository: "reg-7.io/app", want: true },
  { key: "r\\eg.io", repository: "reg.io/app", want: true },
  { key: "reg\\", repository: "reg/app", want: false },
  { key: "*a*b.io", repository: "xaxbxab.io/app", want: true },
  { key: "*a*b.io", repository: "xaxbxa.io/app", want: false },
  { key: "**.io", repository: "quay.io/app", want: true },
  { key: "quay*.io", repository: "quay.io/app", want: true },
  { key: "host:5000", repository: "host:5000/app", want: true },
  { key: "host", repository: "host:5000/app", want: false },
  { key: "host:5000", repository: "host/app", want: false },
  { key: "quayXio", repository: "quay.io/app", want: false },
  { key: "q[.io", repository: "q[.io/app", want: false },
];
for (const { key, repository, want } of matches) {
  test(`credentials of ${key} are ${want ? "" : "not "}for ${repository}`, () =>
    expect(keyMatches(key, repository)).toBe(want));
}

test("patterns that backtrack without end for a regular expression take no time", () => {
  const startedAt = performance.now();
  expect(keyMatches(`${"*a".repeat(100)}b.io`, `${"a".repeat(250)}.io/app`)).toBe(false);
  expect(performance.now() - startedAt).toBeLessThan(200);
});

test("scheme and API version are no part of a key", () => {
  for (const registry of ["quay.io", "https://quay.io", "http://quay.io/", "https://quay.io/v1/", "quay.io/v2/team"]) {
    const { keyring } = keyringFromSecrets([secret("s", { [registry]: user("u") })]);
    expect({ registry, auths: authsFor("quay.io/team/app", [keyring]) }).toEqual({ registry, auths: [user("u")] });
  }
});

test("every match is tried, the more specific key first, then by secret", () => {
  const { keyring, problems } = keyringFromSecrets([
    secret("one", { "quay.io": user("wide"), "quay.io/team": user("team") }),
    secret("two", { "quay.io/team": user("team2"), "other.io": user("no") }),
  ]);
  expect(problems).toEqual([]);
  expect(authsFor("quay.io/team/app:1", [keyring])).toEqual([user("team"), user("team2"), user("wide")]);
});

test("auth holds user and password, also with a colon in the password, and wins over the fields", () => {
  const auth = Buffer.from("me:a:b").toString("base64");
  const { keyring } = keyringFromSecrets([secret("s", { "quay.io": { auth, username: "x", password: "y" } })]);
  expect(authsFor("quay.io/app", [keyring])).toEqual([{ username: "me", password: "a:b" }]);
});

test("the older secret type is read, other types are not", () => {
  const old = secret("old", { "quay.io": user("old") }, "kubernetes.io/dockercfg");
  const opaque = { ...secret("opaque", { "quay.io": user("opaque") }), type: "Opaque" };
  expect(authsFor("quay.io/app", [keyringFromSecrets([opaque, old]).keyring])).toEqual([user("old")]);
});

test("a secret's type that every JavaScript object knows is no type of ours", () => {
  const content = Buffer.from(JSON.stringify({ auths: { "quay.io": user("odd") } })).toString("base64");
  for (const type of ["constructor", "__proto__", "toString"]) {
    const odd: Secret = { metadata: { namespace: "web", name: "odd" }, type, data: { undefined: content } };
    expect(keyringFromSecrets([odd])).toEqual({ keyring: { entries: [] }, problems: [] });
  }
});

test("Docker Hub's images find the key that docker login writes", () => {
  const { keyring } = keyringFromSecrets([secret("hub", { "https://index.docker.io/v1/": user("hub") })]);
  expect(authsFor("busybox", [keyring])).toEqual([user("hub")]);
  expect(authsFor("docker.io/team/app", [keyring])).toEqual([user("hub")]);
  expect(authsFor("quay.io/app", [keyring])).toEqual([]);
});

test("a broken secret is named without its content, and the others still count", () => {
  const broken = { ...secret("broken", {}), data: { ".dockerconfigjson": Buffer.from("s3cret{").toString("base64") } };
  const noColon = secret("no-colon", { "quay.io": { auth: Buffer.from("s3cret").toString("base64") } });
  const { keyring, problems } = keyringFromSecrets([broken, noColon, secret("good", { "quay.io": user("u") })]);
  expect(problems).toHaveLength(2);
  expect(problems[0]).toBe("image pull secret web/broken: not valid JSON");
  expect(problems[1]).toContain("web/no-colon");
  expect(problems.join()).not.toContain("s3cret");
  expect(authsFor("quay.io/app", [keyring])).toEqual([user("u")]);
});

test("credential files have the shape of their name", () => {
  const entry = '{"username":"u","password":"p"}';
  const read = (text: string, shape: "config.json" | "dockercfg") =>
    authsFor("quay.io/app", [keyringFromDockerConfig(text, shape)]);
  expect(read(`{"auths":{"quay.io":${entry}},"credsStore":"x"}`, "config.json")).toEqual([user("u")]);
  expect(read(`{"quay.io":${entry}}`, "dockercfg")).toEqual([user("u")]);
  expect(read(`{"quay.io":${entry}}`, "config.json")).toEqual([]); // some other program's file
  expect(() => read("[]", "config.json")).toThrow("not an object");
});

test("a credential remembers the secret it came from, the node's own have none", () => {
  const { keyring } = keyringFromSecrets([
    { ...secret("s", { "quay.io": user("u") }), metadata: { namespace: "web", name: "s", uid: "1" } },
  ]);
  const node = keyringFromDockerConfig('{"quay.io":{"username":"n","password":"p"}}', "dockercfg");
  expect(credentialsFor("quay.io/app", [keyring, node])).toEqual([
    { ...user("u"), secret: { uid: "1", namespace: "web", name: "s" } },
    user("n"),
  ]);
});
