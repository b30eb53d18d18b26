import { describe, expect, test } from "vitest";
import type { Service } from "../../../agent/kube/types.ts";
import { serviceEnv, type ServiceLookup } from "../../../agent/pods/service-env.ts";

function lookup(services: Service[]): ServiceLookup {
  return {
    hasSynced: true,
    get: ({ namespace, name }) =>
      services.find(({ metadata }) => metadata.namespace === namespace && metadata.name === name),
    inNamespace: (namespace) => services.filter(({ metadata }) => metadata.namespace === namespace),
  };
}

function service(name: string, spec: Service["spec"], namespace = "shop"): Service {
  return { metadata: { name, namespace }, ...(spec === undefined ? {} : { spec }) };
}

describe("serviceEnv", () => {
  test("all variables of a service with two ports", () => {
    const web = service("my-web", {
      clusterIP: "10.96.0.7",
      ports: [
        { name: "http", port: 80, protocol: "TCP" },
        { name: "dns-udp", port: 53, protocol: "UDP" },
      ],
    });
    expect(Object.fromEntries(serviceEnv(lookup([web]), "shop", true))).toEqual({
      MY_WEB_SERVICE_HOST: "10.96.0.7",
      MY_WEB_SERVICE_PORT: "80",
      MY_WEB_SERVICE_PORT_HTTP: "80",
      MY_WEB_SERVICE_PORT_DNS_UDP: "53",
      MY_WEB_PORT: "tcp://10.96.0.7:80",
      MY_WEB_PORT_80_TCP: "tcp://10.96.0.7:80",
      MY_WEB_PORT_80_TCP_PROTO: "tcp",
      MY_WEB_PORT_80_TCP_PORT: "80",
      MY_WEB_PORT_80_TCP_ADDR: "10.96.0.7",
      MY_WEB_PORT_53_UDP: "udp://10.96.0.7:53",
      MY_WEB_PORT_53_UDP_PROTO: "udp",
      MY_WEB_PORT_53_UDP_PORT: "53",
      MY_WEB_PORT_53_UDP_ADDR: "10.96.0.7",
    });
  });

  const kubernetes = service("kubernetes", { clusterIP: "10.96.0.1", ports: [{ port: 443 }] }, "default");
  const hosts = (services: Service[], namespace: string, links: boolean) => {
    const env = serviceEnv(lookup(services), namespace, links);
    return Object.fromEntries([...env].filter(([name]) => name.endsWith("_SERVICE_HOST")));
  };
  test.each([
    { name: "kubernetes always", services: [kubernetes], links: false, want: { KUBERNETES_SERVICE_HOST: "10.96.0.1" } },
    {
      name: "own namespace only with links",
      services: [service("a", { clusterIP: "10.96.0.2" })],
      links: false,
      want: {},
    },
    {
      name: "headless and ExternalName have none",
      services: [
        service("a", { clusterIP: "None" }),
        service("b", { clusterIP: "" }),
        service("c", { type: "ExternalName" }),
        service("d", undefined),
      ],
      links: true,
      want: {},
    },
    {
      name: "another namespace's are not shown",
      services: [service("a", { clusterIP: "10.96.0.2" }, "other")],
      links: true,
      want: {},
    },
    {
      name: "the pod's own kubernetes beats the default one",
      services: [kubernetes, service("kubernetes", { clusterIP: "10.96.0.99" })],
      links: true,
      want: { KUBERNETES_SERVICE_HOST: "10.96.0.99" },
    },
  ])("$name", ({ services, links, want }) => expect(hosts(services, "shop", links)).toEqual(want));

  test("a pod in the namespace default learns of kubernetes once, and of its neighbours with links only", () => {
    const services = [kubernetes, service("a", { clusterIP: "10.96.0.2" }, "default")];
    const api = { KUBERNETES_SERVICE_HOST: "10.96.0.1" };
    expect(hosts(services, "default", false)).toEqual(api);
    expect(hosts(services, "default", true)).toEqual({ ...api, A_SERVICE_HOST: "10.96.0.2" });
  });

  test("a Service of two families is known by its first address", () => {
    const dual = service("dual", {
      clusterIP: "10.96.0.2",
      clusterIPs: ["10.96.0.2", "fd00::2"],
      ports: [{ port: 1 }],
    });
    const values = [...serviceEnv(lookup([dual]), "shop", true).values()];
    expect(values.filter((value) => value.includes("fd00"))).toEqual([]);
  });

  test("of the namespace default nothing but kubernetes is looked at for a pod of another one", () => {
    const asked: string[] = [];
    const services = lookup([kubernetes]);
    const watched: ServiceLookup = {
      ...services,
      inNamespace: (namespace) => {
        asked.push(namespace);
        return services.inNamespace(namespace);
      },
    };
    expect(serviceEnv(watched, "shop", true).get("KUBERNETES_SERVICE_HOST")).toBe("10.96.0.1");
    expect(asked).toEqual(["shop"]);
  });

  test("IPv6 addresses stand in brackets in URLs only", () => {
    const services = lookup([service("six", { clusterIP: "fd00::1", ports: [{ port: 80 }] })]);
    const env = serviceEnv(services, "shop", true);
    expect(env.get("SIX_PORT")).toBe("tcp://[fd00::1]:80");
    expect(env.get("SIX_PORT_80_TCP_ADDR")).toBe("fd00::1");
  });
});
