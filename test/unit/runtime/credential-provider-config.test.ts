import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ConfigError } from "../../../agent/config/problems.ts";
import { readCredentialProviders } from "../../../agent/runtime/credential-provider-config.ts";

let dir: string;
let binDir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-provider-config-"));
  binDir = join(dir, "bin");
  await mkdir(join(binDir, "folder"), { recursive: true });
  for (const name of ["ecr", "acr"]) {
    await writeFile(join(binDir, name), "#!/bin/sh\n");
    await chmod(join(binDir, name), 0o755);
  }
  await writeFile(join(binDir, "plain"), "not executable");
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
});

const provider = {
  name: "ecr",
  matchImages: ["*.dkr.ecr.*.amazonaws.com", "registry.io:8080/path"],
  defaultCacheDuration: "12h",
  apiVersion: "credentialprovider.kubelet.k8s.io/v1",
};
const tokenAttributes = {
  serviceAccountTokenAudience: "registry",
  cacheType: "Token",
  requireServiceAccount: true,
  requiredServiceAccountAnnotationKeys: ["example.com/role"],
};
const document = (providers: unknown, version = "v1") => ({
  apiVersion: `kubelet.config.k8s.io/${version}`,
  kind: "CredentialProviderConfig",
  providers,
});

/** Writes the documents as files of that name in a folder of their own. @returns the folder, or its only file */
async function put(files: Record<string, unknown>): Promise<string> {
  const folder = await mkdtemp(join(dir, "config-"));
  for (const [name, content] of Object.entries(files)) {
    await writeFile(join(folder, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  const [only = "", ...others] = Object.keys(files);
  return others.length === 0 ? join(folder, only) : folder;
}

const read = async (path: string, mayHaveTokens = true) =>
  await readCredentialProviders(path, { binDir, mayHaveTokens });

test("a file with everything", async () => {
  const path = await put({
    "config.json": document([
      { ...provider, args: ["get"], env: [{ name: "REGION", value: "eu" }] },
      { ...provider, name: "acr", defaultCacheDuration: "0s", tokenAttributes },
    ]),
  });
  const { providers, hash } = await read(path);
  expect(hash).toMatch(/^sha256:[0-9a-f]{64}$/);
  expect(providers).toEqual([
    {
      name: "ecr",
      file: join(binDir, "ecr"),
      matchImages: provider.matchImages,
      defaultCacheDurationMs: 12 * 3_600_000,
      apiVersion: provider.apiVersion,
      args: ["get"],
      env: [{ name: "REGION", value: "eu" }],
    },
    {
      name: "acr",
      file: join(binDir, "acr"),
      matchImages: provider.matchImages,
      defaultCacheDurationMs: 0,
      apiVersion: provider.apiVersion,
      args: [],
      env: [],
      tokens: {
        audience: "registry",
        cacheType: "Token",
        isRequired: true,
        requiredAnnotations: ["example.com/role"],
        optionalAnnotations: [],
      },
    },
  ]);
});

test("every version of the file and YAML are read", async () => {
  for (const version of ["v1", "v1beta1", "v1alpha1"]) {
    const yaml = [
      `apiVersion: kubelet.config.k8s.io/${version}`,
      "kind: CredentialProviderConfig",
      "providers:",
      "- name: ecr",
      '  matchImages: ["*.io"]',
      "  defaultCacheDuration: 1m30s",
      "  apiVersion: credentialprovider.kubelet.k8s.io/v1beta1",
    ].join("\n");
    const { providers } = await read(await put({ "config.yaml": yaml }));
    expect(providers).toMatchObject([{ name: "ecr", defaultCacheDurationMs: 90_000 }]);
  }
});

test("a directory is read in the order of names, other files and folders are left alone", async () => {
  const path = await put({
    "20-b.yml": document([{ ...provider, name: "acr" }]),
    "10-a.json": document([provider]),
    "README.md": "# no configuration",
  });
  await mkdir(join(path, "more.yaml"));
  const { providers } = await read(path);
  expect(providers.map(({ name }) => name)).toEqual(["ecr", "acr"]);
});

const without = (field: keyof typeof provider) => ({ ...provider, [field]: undefined });
const wrong: { name: string; files: Record<string, unknown>; says: string }[] = [
  { name: "not YAML", files: { f: "{" }, says: "f: is not valid YAML" },
  {
    name: "another kind",
    files: { f: { ...document([provider]), kind: "Config" } },
    says: "kind CredentialProviderConfig, not",
  },
  { name: "another version", files: { f: document([provider], "v2") }, says: '"kubelet.config.k8s.io/v2"' },
  { name: "no provider", files: { f: document([]) }, says: "f: providers must name at least one provider" },
  {
    name: "an unknown field",
    files: { f: document([{ ...provider, matchImage: [] }]) },
    says: "providers[0].matchImage is not a known field",
  },
  {
    name: "an unknown field on top",
    files: { f: { ...document([provider]), extra: 1 } },
    says: "extra is not a known field",
  },
  { name: "no name", files: { f: document([without("name")]) }, says: "providers[0].name must be set" },
  {
    name: "no matchImages",
    files: { f: document([without("matchImages")]) },
    says: "providers[0].matchImages must be set",
  },
  {
    name: "empty matchImages",
    files: { f: document([{ ...provider, matchImages: [] }]) },
    says: "providers[0].matchImages must name",
  },
  {
    name: "a pattern with a scheme",
    files: { f: document([{ ...provider, matchImages: ["https://a.io"] }]) },
    says: "providers[0].matchImages[0] must be like",
  },
  {
    name: "no duration",
    files: { f: document([without("defaultCacheDuration")]) },
    says: "providers[0].defaultCacheDuration must be set",
  },
  {
    name: "a negative duration",
    files: { f: document([{ ...provider, defaultCacheDuration: "-1s" }]) },
    says: "providers[0].defaultCacheDuration must be",
  },
  { name: "no version", files: { f: document([without("apiVersion")]) }, says: "providers[0].apiVersion must be set" },
  {
    name: "a version of another group",
    files: { f: document([{ ...provider, apiVersion: "v1" }]) },
    says: "providers[0].apiVersion must be one of",
  },
  {
    name: "a name with a slash",
    files: { f: document([{ ...provider, name: "../ecr" }]) },
    says: "providers[0].name must be a file name",
  },
  {
    name: "a name with a space",
    files: { f: document([{ ...provider, name: "e cr" }]) },
    says: "providers[0].name must be a file name",
  },
  {
    name: "a missing executable",
    files: { f: document([{ ...provider, name: "gcr" }]) },
    says: "providers[0].name: its executable cannot be used: ENOENT",
  },
  { name: "a file that is not executable", files: { f: document([{ ...provider, name: "plain" }]) }, says: "EACCES" },
  {
    name: "a folder as executable",
    files: { f: document([{ ...provider, name: "folder" }]) },
    says: "folder is not a file",
  },
  {
    name: "a name twice",
    files: { "a.json": document([provider]), "b.json": document([provider]) },
    says: 'b.json: providers[0].name must not be "ecr" again, as',
  },
  {
    name: "a secret of the wrong type",
    files: { f: document([{ ...provider, env: [{ name: "A", value: 42424242 }] }]) },
    says: "env[0].value must be a string (its value is not shown)",
  },
  {
    name: "tokens in an old file",
    files: { f: document([{ ...provider, tokenAttributes }], "v1beta1") },
    says: "tokenAttributes needs a file of apiVersion kubelet.config.k8s.io/v1",
  },
  {
    name: "tokens for an old plugin",
    files: { f: document([{ ...provider, apiVersion: "credentialprovider.kubelet.k8s.io/v1beta1", tokenAttributes }]) },
    says: "tokenAttributes needs providers' apiVersion",
  },
  {
    name: "tokens without an audience",
    files: { f: document([{ ...provider, tokenAttributes: { ...tokenAttributes, serviceAccountTokenAudience: "" } }]) },
    says: "tokenAttributes.serviceAccountTokenAudience must be set",
  },
  {
    name: "tokens without a cache type",
    files: { f: document([{ ...provider, tokenAttributes: { ...tokenAttributes, cacheType: "" } }]) },
    says: "tokenAttributes.cacheType must be one of ServiceAccount, Token",
  },
  {
    name: "empty tokenAttributes",
    files: { f: document([{ ...provider, tokenAttributes: {} }]) },
    says: "tokenAttributes.requireServiceAccount must be set",
  },
  {
    name: "annotations required of nobody",
    files: { f: document([{ ...provider, tokenAttributes: { ...tokenAttributes, requireServiceAccount: false } }]) },
    says: "requiredServiceAccountAnnotationKeys must be empty",
  },
  {
    name: "an annotation both required and optional",
    files: {
      f: document([
        {
          ...provider,
          tokenAttributes: { ...tokenAttributes, optionalServiceAccountAnnotationKeys: ["example.com/role"] },
        },
      ]),
    },
    says: "optionalServiceAccountAnnotationKeys must not repeat required ones",
  },
  {
    name: "something that is no annotation",
    files: {
      f: document([
        { ...provider, tokenAttributes: { ...tokenAttributes, requiredServiceAccountAnnotationKeys: ["a b"] } },
      ]),
    },
    says: "requiredServiceAccountAnnotationKeys[0] must be an annotation's key",
  },
];
test.for(wrong)("$name ends the start, naming file and field", async ({ files, says }) => {
  const path = await put(files);
  const err: unknown = await read(path).catch((e: unknown) => e);
  if (!(err instanceof ConfigError)) throw err;
  expect(err.message).toContain(says);
  expect(err.message).toContain(path);
  expect(err.message).not.toContain("42424242");
});

test("tokens need their feature gate", async () => {
  const path = await put({ f: document([{ ...provider, tokenAttributes }]) });
  await expect(read(path, false)).rejects.toThrow("providers[0].tokenAttributes needs feature gate Kubelet");
  await read(await put({ f: document([provider]) }), false);
});

test("a path that is not there, and a directory without a file", async () => {
  await expect(read(join(dir, "none"))).rejects.toThrow(
    /^--image-credential-provider-config: .*none cannot be read: ENOENT/,
  );
  await expect(read(join(binDir, "folder"))).rejects.toThrow("holds no .json");
});
