import { lstat, mkdir, readdir, readFile, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { type CertificatePair } from "../../../../agent/kube/certificates/pair.ts";
import { PemStore } from "../../../../agent/kube/certificates/store.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { makePair, temporaryDir } from "./support.ts";

const at = (second: number) => new Date(2026, 10, 21, 14, 40, second);
const open = (dir: string, configured?: { cert: string; key: string }) =>
  new PemStore({
    dir,
    prefix: "kubelet-client",
    log: silentLogger,
    ...(configured === undefined ? {} : { configured }),
  });
const serialOf = (pair: CertificatePair | undefined) => pair?.leaf.serialNumber;

describe("a saved pair", () => {
  test("lies where the reference puts it, for root alone", async () => {
    await using tmp = await temporaryDir();
    const dir = join(tmp.path, "lib", "pki");
    const pair = await makePair();
    const store = open(dir);
    await store.save(pair, at(5));
    expect((await readdir(dir)).sort()).toEqual([
      "kubelet-client-2026-11-21-14-40-05.pem",
      "kubelet-client-current.pem",
    ]);
    const file = join(dir, "kubelet-client-2026-11-21-14-40-05.pem");
    expect(await readlink(store.currentPath)).toBe(file);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await stat(dir)).mode & 0o777).toBe(0o755);
    const text = await readFile(store.currentPath, "utf8");
    expect(text).toMatch(/^-----BEGIN CERTIFICATE-----[\s\S]+-----BEGIN EC PRIVATE KEY-----[\s\S]+KEY-----\n$/);
    expect(serialOf(await open(dir).load())).toBe(serialOf(pair));
  });

  test("of the same second replaces the one before", async () => {
    await using tmp = await temporaryDir();
    const [first, second] = await Promise.all([makePair(), makePair()]);
    const store = open(tmp.path);
    await store.save(first, at(5));
    await store.save(second, at(5));
    expect(serialOf(await store.load())).toBe(serialOf(second));
  });

  test("takes the place of a file that somebody copied to where the link should be", async () => {
    await using tmp = await temporaryDir();
    const [copied, next] = await Promise.all([makePair(), makePair()]);
    const store = open(tmp.path);
    await writeFile(store.currentPath, Buffer.concat([copied.cert, copied.key]));
    expect(serialOf(await store.load())).toBe(serialOf(copied));
    await store.save(next, at(5));
    expect((await lstat(store.currentPath)).isSymbolicLink()).toBe(true);
    expect(serialOf(await store.load())).toBe(serialOf(next));
  });
});

describe("a kill while a pair is saved", () => {
  const steps = 6;
  test.each(Array.from({ length: steps + 1 }, (_, done) => ({ done })))(
    "after $done of the steps leaves a usable pair, and the next one can be saved",
    async ({ done }) => {
      await using tmp = await temporaryDir();
      const [first, second, third] = await Promise.all([makePair(), makePair(), makePair()]);
      const store = open(tmp.path);
      await store.save(first, at(1));
      const all = store.steps(second, at(2));
      expect(all).toHaveLength(steps);
      for (const step of all.slice(0, done)) await step();
      const restarted = open(tmp.path);
      const found = serialOf(await restarted.load());
      expect(found).toBe(done < 5 ? serialOf(first) : serialOf(second));
      await restarted.save(third, at(3));
      expect(serialOf(await restarted.load())).toBe(serialOf(third));
      expect(await readdir(tmp.path)).not.toContain("kubelet-client-updated.pem");
    },
  );

  test("the first one: what was linked but not put in place is put there", async () => {
    await using tmp = await temporaryDir();
    const pair = await makePair();
    for (const step of open(tmp.path).steps(pair, at(1)).slice(0, 4)) await step();
    const store = open(tmp.path);
    expect(serialOf(await store.load())).toBe(serialOf(pair));
    expect(await readFile(store.currentPath, "utf8")).toContain("BEGIN CERTIFICATE");
  });
});

describe("looking for a pair", () => {
  test("goes from the current one to the configured one to PREFIX.crt and PREFIX.key", async () => {
    await using tmp = await temporaryDir();
    const { path: dir } = tmp;
    const [current, configured, plain] = await Promise.all([makePair(), makePair(), makePair()]);
    const put = async (base: string, pair: CertificatePair) => {
      await writeFile(join(dir, `${base}.crt`), pair.cert);
      await writeFile(join(dir, `${base}.key`), pair.key);
    };
    const store = open(dir, { cert: join(dir, "mine.crt"), key: join(dir, "mine.key") });
    expect(await store.load()).toBeUndefined();
    await put("kubelet-client", plain);
    expect(serialOf(await store.load())).toBe(serialOf(plain));
    await put("mine", configured);
    expect(serialOf(await store.load())).toBe(serialOf(configured));
    await store.save(current, at(1));
    expect(serialOf(await store.load())).toBe(serialOf(current));
  });

  test.each([
    { name: "an empty file", make: (path: string) => writeFile(path, "") },
    { name: "garbage", make: (path: string) => writeFile(path, Buffer.from([0, 1, 2, 255])) },
    { name: "a link to nothing", make: (path: string) => symlink("/nonexistent/x.pem", path) },
    { name: "a link to itself", make: (path: string) => symlink(path, path) },
    { name: "a directory", make: (path: string) => mkdir(path) },
  ])("passes over $name", async ({ make }) => {
    await using tmp = await temporaryDir();
    const store = open(tmp.path);
    await make(store.currentPath);
    expect(await store.load()).toBeUndefined();
  });

  test("in a directory that is not there finds nothing, and makes nothing", async () => {
    await using tmp = await temporaryDir();
    const dir = join(tmp.path, "none");
    expect(await open(dir).load()).toBeUndefined();
    await expect(stat(dir)).rejects.toMatchObject({ code: "ENOENT" });
  });
});

test("a directory that cannot be written to makes save reject, and keeps the pair that is there", async () => {
  await using tmp = await temporaryDir();
  const [first, second] = await Promise.all([makePair(), makePair()]);
  const store = open(tmp.path);
  await store.save(first, at(1));
  // A file where the next pair's directory should be: it fails for root, too.
  const blocked = new PemStore({ dir: join(store.currentPath, "sub"), prefix: "kubelet-client", log: silentLogger });
  await expect(blocked.save(second, at(2))).rejects.toMatchObject({ code: "ENOTDIR" });
  await mkdir(join(tmp.path, "kubelet-client-2026-11-21-14-40-02.pem"));
  await expect(store.save(second, at(2))).rejects.toMatchObject({ code: "EISDIR" });
  expect(serialOf(await store.load())).toBe(serialOf(first));
  await rm(join(tmp.path, "kubelet-client-2026-11-21-14-40-02.pem"), { recursive: true });
  expect((await readdir(tmp.path)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
});
