import { readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { defaultConfigName, renderDefaultConfig, writeDefaultConfig } from "../../../cni/default-config.ts";
import { DefaultNetwork } from "../../../cni/default-keeper.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { ScriptedNode, versionScript } from "./scripted-plugins.ts";

let node: ScriptedNode;
beforeEach(async () => {
  node = await ScriptedNode.create();
  for (const name of ["bridge", "host-local", "portmap", "firewall", "bandwidth"]) await node.plugin(name);
});
afterEach(async () => node[Symbol.asyncDispose]());

const write = async (podCIDRs = ["10.1.0.0/24"]) =>
  writeDefaultConfig({ confDir: node.confDir, binDirs: [node.binDir], podCIDRs, log: silentLogger });
const path = () => join(node.confDir, defaultConfigName);
const read = async () =>
  JSON.parse(await readFile(path(), "utf8")) as { cniVersion: string; plugins: { type: string }[] };

describe("renderDefaultConfig", () => {
  test("dual stack: an address and a default route of each family", () => {
    const options = {
      podCIDRs: ["10.1.0.0/24", "fd00:1::/64"],
      bridge: "br0",
      ipMasq: false,
      mtu: 1400,
      dataDir: "/d",
    };
    expect(JSON.parse(renderDefaultConfig(options, "1.0.0", new Set(["firewall", "bandwidth"])))).toEqual({
      cniVersion: "1.0.0",
      name: "nodelet",
      managedBy: "nodelet",
      plugins: [
        {
          type: "bridge",
          bridge: "br0",
          isGateway: true,
          forceAddress: true,
          ipMasq: false,
          hairpinMode: true,
          mtu: 1400,
          ipam: {
            type: "host-local",
            ranges: [[{ subnet: "10.1.0.0/24" }], [{ subnet: "fd00:1::/64" }]],
            routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
            dataDir: "/d",
          },
        },
        { type: "portmap", capabilities: { portMappings: true } },
        { type: "firewall" },
        { type: "bandwidth", capabilities: { bandwidth: true } },
      ],
    });
  });

  for (const podCIDRs of [[], ["10.1.0.0"], ["10.1.0.0/40"], ["10.1.0.0/24", "10.2.0.0/24"], ["pods/24"]]) {
    test(`refuses [${podCIDRs.join(" ")}]`, () => {
      expect(() => renderDefaultConfig({ podCIDRs }, "1.0.0", new Set())).toThrow(/pod ?CIDR/);
    });
  }
});

describe("writeDefaultConfig", () => {
  test("is written where there is none, readable for all, and is the network then", async () => {
    await rm(node.confDir, { recursive: true });
    expect(await write()).toBe("written");
    expect((await stat(path())).mode & 0o777).toBe(0o644);
    expect(await node.cni().status()).toMatchObject({ ready: true });
    expect(await write()).toBe("unchanged");
  });

  test("follows the node's addresses and the plugins", async () => {
    await write();
    expect(await write(["10.2.0.0/24"])).toBe("written");
    expect(JSON.stringify(await read())).toContain("10.2.0.0/24");
    await rm(join(node.binDir, "bandwidth"));
    await node.plugin("firewall", { VERSION: versionScript(["0.4.0", "1.0.0"]) });
    expect(await write(["10.2.0.0/24"])).toBe("written");
    const { cniVersion, plugins } = await read();
    expect(cniVersion).toBe("1.0.0");
    expect(plugins.map(({ type }) => type)).toEqual(["bridge", "portmap", "firewall"]);
  });

  test("leaves another network alone", async () => {
    await node.network({ cniVersion: "1.0.0", name: "theirs", plugins: [{ type: "bridge" }] });
    expect(await write()).toBe("foreign");
    expect(await readdir(node.confDir)).toEqual(["10-net.conflist"]);
  });

  test("leaves ours alone once somebody took it over, or broke it", async () => {
    await write();
    for (const theirs of [(await readFile(path(), "utf8")).replace("managedBy", "wasManagedBy"), "{"]) {
      await writeFile(path(), theirs);
      expect(await write(["10.3.0.0/24"])).toBe("foreign");
      expect(await readFile(path(), "utf8")).toBe(theirs);
    }
  });

  test("gives way to a provider's that sorts behind numbers", async () => {
    await write();
    await node.network({ cniVersion: "1.0.0", name: "theirs", plugins: [{ type: "bridge" }] }, "calico.conflist");
    await node.cni().add({ containerID: "abc", netnsPath: "/proc/self/ns/net" });
    expect((await node.calls()).map(({ input }) => input["name"])).toEqual(["theirs"]);
    expect(await write()).toBe("foreign");
  });

  test("takes over the name that it had before, unless somebody took that over", async () => {
    const former = join(node.confDir, "99-nodelet.conflist");
    await write();
    await rename(path(), former);
    expect(await write()).toBe("written");
    expect(await readdir(node.confDir)).toEqual([defaultConfigName]);
    await rename(path(), former);
    const theirs = (await readFile(former, "utf8")).replace("managedBy", "wasManagedBy");
    await writeFile(former, theirs);
    expect(await write()).toBe("foreign");
    expect(await readdir(node.confDir)).toEqual(["99-nodelet.conflist"]);
  });

  test("a broken file of others is no network", async () => {
    await writeFile(join(node.confDir, "10-broken.conflist"), "{");
    expect(await write()).toBe("written");
  });

  test("says which plugin it needs", async () => {
    await rm(join(node.binDir, "host-local"));
    await expect(write()).rejects.toThrow('default network: failed to find plugin "host-local" in path');
    await node.plugin("host-local", { VERSION: versionScript(["0.2.0"]) });
    await expect(write()).rejects.toThrow('default network: plugin type="host-local" does not support config version');
  });
});

describe("DefaultNetwork", () => {
  test("writes the file again after it was deleted or a provider has gone, until it is closed", async () => {
    const options = { confDir: node.confDir, binDirs: [node.binDir], log: silentLogger, clock: systemClock };
    const network = new DefaultNetwork(options);
    const names = async () => readdir(node.confDir);
    try {
      await network.use(["10.1.0.0/24"]);
      expect(await names()).toEqual([defaultConfigName]);
      await rm(path());
      await expect.poll(names).toEqual([defaultConfigName]);
      await node.network({ cniVersion: "1.0.0", name: "theirs", plugins: [{ type: "bridge" }] });
      await network.use(["10.2.0.0/24"]);
      expect(JSON.stringify(await read())).toContain("10.1.0.0/24");
      await rm(join(node.confDir, "10-net.conflist"));
      await expect.poll(async () => JSON.stringify(await read())).toContain("10.2.0.0/24");
    } finally {
      await network.close();
    }
  });

  test("says what is missing to who gives it the addresses, and writes once it is there", async () => {
    const clock = new FakeClock();
    const network = new DefaultNetwork({ confDir: node.confDir, binDirs: [node.binDir], log: silentLogger, clock });
    try {
      await network.use(["10.1.0.0/24"]);
      await rm(path());
      await rm(join(node.binDir, "portmap"));
      await expect(network.use(["10.1.0.0/24"])).rejects.toMatchObject({ code: "Unavailable" });
      await node.plugin("portmap");
      await network.use(["10.1.0.0/24"]);
      expect(await readdir(node.confDir)).toEqual([defaultConfigName]);
    } finally {
      await network.close();
    }
  });
});
