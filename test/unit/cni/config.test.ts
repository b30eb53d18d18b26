import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { parseNetworkConfig, renderNetworkConfig } from "../../../cni/config.ts";
import { configBytesMax, readConfigDir } from "../../../cni/config-dir.ts";

const text = (value: unknown) => JSON.stringify(value);
const bridge = { type: "bridge", capabilities: { portMappings: true, dns: false }, mtu: 1400 };

describe("parseNetworkConfig", () => {
  test("a list with all that may be in it", () => {
    const config = parseNetworkConfig(
      "a.conflist",
      text({
        cniVersion: "1.1.0",
        name: "n",
        disableCheck: true,
        disableGC: "TRUE",
        plugins: [bridge, { type: "portmap" }],
      }),
    );
    expect(config).toMatchObject({
      name: "n",
      versions: ["1.1.0"],
      disableCheck: true,
      disableGC: true,
      loadOnlyInlinedPlugins: false,
    });
    expect(config.plugins.map(({ type }) => type)).toEqual(["bridge", "portmap"]);
    expect([...(config.plugins[0]?.capabilities ?? [])]).toEqual(["portMappings"]);
    expect(config.plugins[0]?.body).toEqual(bridge);
  });

  for (const name of ["a.conf", "a.json"]) {
    test(`${name} holds a single plugin`, () => {
      const config = parseNetworkConfig(name, text({ cniVersion: "0.3.1", name: "n", ...bridge }));
      expect(config).toMatchObject({ name: "n", versions: ["0.3.1"], loadOnlyInlinedPlugins: true });
      expect(config.plugins.map(({ type }) => type)).toEqual(["bridge"]);
    });
  }

  const versions: { name: string; top: object; want: string[] }[] = [
    { name: "none is the first", top: {}, want: ["0.1.0"] },
    { name: "an empty one is the first", top: { cniVersion: "" }, want: ["0.1.0"] },
    { name: "one", top: { cniVersion: "0.4.0" }, want: ["0.4.0"] },
    {
      name: "several, with the single one",
      top: { cniVersion: "0.4.0", cniVersions: ["1.0.0", "1.1.0"] },
      want: ["0.4.0", "1.0.0", "1.1.0"],
    },
    { name: "later ones are left to others", top: { cniVersions: ["1.0.0", "9.0.0"] }, want: ["1.0.0"] },
  ];
  for (const { name, top, want } of versions) {
    test(`versions: ${name}`, () => {
      expect(parseNetworkConfig("a.conflist", text({ name: "n", plugins: [bridge], ...top })).versions).toEqual(want);
    });
  }

  const wrong: { name: string; top: unknown; want: string; file?: string }[] = [
    { name: "no object", top: [], want: "file: must hold an object, holds a list" },
    { name: "no name", top: { plugins: [bridge] }, want: "name: must be set" },
    { name: "a name that leads elsewhere", top: { name: "../x", plugins: [bridge] }, want: 'name: "../x" must begin' },
    { name: "a name that is a number", top: { name: 1 }, want: "name: must be a string, is a number" },
    {
      name: "an unknown version",
      top: { name: "n", cniVersion: "2.0.0" },
      want: 'cniVersion: "2.0.0" is not supported',
    },
    { name: "only unknown versions", top: { name: "n", cniVersions: ["3.0.0"] }, want: "cniVersions: none of 3.0.0" },
    {
      name: "a version list of numbers",
      top: { name: "n", cniVersions: [1] },
      want: "cniVersions[0]: must be a string",
    },
    { name: "no plugins", top: { name: "n", plugins: [] }, want: "plugins: must name at least one plugin" },
    {
      name: "plugins that are none",
      top: { name: "n", plugins: ["x"] },
      want: "plugins[0]: must be an object, is a string",
    },
    {
      name: "a plugin without a type",
      top: { name: "n", plugins: [bridge, {}] },
      want: "plugins[1].type: must be set",
    },
    {
      name: "a plugin that is a path",
      top: { name: "n", plugins: [{ type: "../sh" }] },
      want: 'plugins[0].type: "../sh" must be',
    },
    {
      name: "capabilities that are no flags",
      top: { name: "n", plugins: [{ type: "a", capabilities: { dns: 1 } }] },
      want: "plugins[0].capabilities.dns: must be true or false, is a number",
    },
    {
      name: "a flag that is none",
      top: { name: "n", disableGC: "maybe", plugins: [bridge] },
      want: 'disableGC: must be true or false, is "maybe"',
    },
    {
      name: "inlined plugins only, and none",
      top: { name: "n", loadOnlyInlinedPlugins: true },
      want: "plugins: must be set, as loadOnlyInlinedPlugins",
    },
    {
      name: "a list in a .conf",
      top: { name: "n", plugins: [bridge] },
      want: "plugins: a list of plugins needs a file name in .conflist",
      file: "a.conf",
    },
  ];
  for (const { name, top, want, file = "a.conflist" } of wrong) {
    test(`refuses ${name}, naming the field`, () => {
      expect(() => parseNetworkConfig(file, text(top))).toThrow(want);
    });
  }

  test("what is recorded reads the same, with one version", () => {
    const config = parseNetworkConfig(
      "a.conflist",
      text({ cniVersions: ["0.4.0", "1.0.0"], name: "n", disableGC: true, plugins: [bridge] }),
    );
    expect(parseNetworkConfig("b.conflist", renderNetworkConfig(config, "1.0.0"))).toEqual({
      ...config,
      versions: ["1.0.0"],
      loadOnlyInlinedPlugins: true,
    });
  });
});

describe("readConfigDir", () => {
  let dir: string;
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "nodelet-cni-"));
  });
  afterEach(async () => rm(dir, { recursive: true, force: true }));
  const put = async (name: string, content: unknown) =>
    writeFile(join(dir, name), typeof content === "string" ? content : text(content));
  const list = (name: string) => ({ cniVersion: "1.0.0", name, plugins: [bridge] });

  test("a directory that is not there holds nothing", async () => {
    expect(await readConfigDir(join(dir, "later"))).toEqual({ config: undefined, file: undefined, problems: [] });
  });

  test("the first file by name is taken, whatever its kind", async () => {
    await put("20-b.conflist", list("b"));
    await put("10-a.conf", { cniVersion: "1.0.0", name: "a", type: "bridge" });
    await put("05-none.conflist.bak", list("bak"));
    await put("README", "no configuration");
    const { config, file, problems } = await readConfigDir(dir);
    expect([config?.name, file, problems]).toEqual(["a", join(dir, "10-a.conf"), []]);
  });

  test("capital letters sort before small ones, as other runtimes have it", async () => {
    await put("a.conflist", list("small"));
    await put("B.conflist", list("big"));
    expect((await readConfigDir(dir)).config?.name).toBe("big");
  });

  test("broken files are named and passed over", async () => {
    await put("10-a.conflist", '{"name": ');
    await put("20-b.conflist", { ...list("b"), plugins: [{ type: "" }] });
    await put("30-c.conflist", "x".repeat(configBytesMax + 1));
    await put("40-d.conflist", list("d"));
    const { config, problems } = await readConfigDir(dir);
    expect(config?.name).toBe("d");
    expect(problems).toEqual([
      expect.stringContaining(`${join(dir, "10-a.conflist")}: file: is no JSON`),
      `${join(dir, "20-b.conflist")}: plugins[0].type: must be set`,
      expect.stringContaining(`${join(dir, "30-c.conflist")}: file: has`),
    ]);
  });

  test("a pipe, a directory and a dangling link are passed over without waiting", async () => {
    await exec("mkfifo", [join(dir, "10-pipe.conflist")], { timeoutMs: 5_000 });
    await mkdir(join(dir, "20-dir.conflist"));
    await symlink("nowhere", join(dir, "30-link.conflist"));
    await put("40-d.conflist", list("d"));
    expect((await readConfigDir(dir)).config?.name).toBe("d");
  });

  test("further plugins come from the network's directory, in order, unless the network says no", async () => {
    await put("10-a.conflist", { cniVersion: "1.0.0", name: "a", plugins: [bridge] });
    await mkdir(join(dir, "a"));
    await put("a/20.conf", { type: "tuning" });
    await put("a/10.conf", { type: "firewall" });
    await put("a/30.json", { type: "not-a-conf" });
    const typesOf = async () => (await readConfigDir(dir)).config?.plugins.map(({ type }) => type);
    expect(await typesOf()).toEqual(["bridge", "firewall", "tuning"]);
    await put("10-a.conflist", { ...list("a"), loadOnlyInlinedPlugins: true });
    expect(await typesOf()).toEqual(["bridge"]);
  });

  test("a network without any plugin, and one with a broken further one, are told apart", async () => {
    await put("10-a.conflist", { cniVersion: "1.0.0", name: "a" });
    await put("20-b.conflist", list("b"));
    await mkdir(join(dir, "b"));
    await put("b/x.conf", "{}");
    expect((await readConfigDir(dir)).problems).toEqual([
      `${join(dir, "10-a.conflist")}: plugins: must be set, as there is no a/*.conf either`,
      `${join(dir, "20-b.conflist")}: b/x.conf: type: must be set`,
    ]);
  });
});
