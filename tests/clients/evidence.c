// SPDX-License-Identifier: MIT
/*
 * Reads all evidence of a device with libmnl: evidence DEVICE DIR.
 *
 * Each object goes to a file DIR/NAME.bin. Written for a kernel that has the family "pci-tsm".
 */

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/genetlink.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { EVIDENCE_READ = 1 };
enum { TYPE = 1, TYPE_MASK, FLAGS, DEV_NAME, NONCE, VAL, ATTRIBUTES };

static const char *const names[] = {
	"cert0", "cert1", "cert2", "cert3", "cert4", "cert5",
	"cert6", "cert7", "vca", "measurements", "report",
};

#define TYPES (sizeof(names) / sizeof(names[0]))
#define BUFFER_SIZE 32768 /* no message of a dump is larger */

struct client {
	struct mnl_socket *socket;
	unsigned int seq;
	const char *directory;
	FILE *object;
};

static struct nlmsghdr *request(struct client *client, void *buffer, uint16_t type, uint16_t flags,
				uint8_t command)
{
	struct nlmsghdr *header = mnl_nlmsg_put_header(buffer);
	struct genlmsghdr *genl = mnl_nlmsg_put_extra_header(header, sizeof(*genl));

	header->nlmsg_type = type;
	header->nlmsg_flags = NLM_F_REQUEST | flags;
	header->nlmsg_seq = ++client->seq;
	genl->cmd = command;
	genl->version = 1;
	return header;
}

/* The errno of a dump stands in its last message. */
static int on_done(const struct nlmsghdr *header, void *data)
{
	const int *status = mnl_nlmsg_get_payload(header);

	(void)data;
	if (mnl_nlmsg_get_payload_len(header) < sizeof(*status) || *status == 0)
		return MNL_CB_STOP;
	errno = -*status;
	return MNL_CB_ERROR;
}

static int on_error(const struct nlmsghdr *header, void *data)
{
	const struct nlmsgerr *error = mnl_nlmsg_get_payload(header);

	(void)data;
	if (mnl_nlmsg_get_payload_len(header) < sizeof(*error)) {
		errno = EBADMSG;
		return MNL_CB_ERROR;
	}
	errno = -error->error;
	return error->error == 0 ? MNL_CB_STOP : MNL_CB_ERROR;
}

static mnl_cb_t control[NLMSG_MIN_TYPE] = {
	[NLMSG_ERROR] = on_error,
	[NLMSG_DONE] = on_done,
};

/* Sends a request and has the callback see the replies up to their end. */
static int exchange(struct client *client, const struct nlmsghdr *header, mnl_cb_t callback,
		    void *data)
{
	static char buffer[BUFFER_SIZE];
	unsigned int port = mnl_socket_get_portid(client->socket);
	int more = MNL_CB_OK;

	if (mnl_socket_sendto(client->socket, header, header->nlmsg_len) < 0)
		return -1;
	while (more > MNL_CB_STOP) {
		ssize_t size = mnl_socket_recvfrom(client->socket, buffer, sizeof(buffer));

		if (size <= 0)
			return -1;
		more = mnl_cb_run2(buffer, (size_t)size, client->seq, port, callback, data, control,
				   NLMSG_MIN_TYPE);
	}
	return more;
}

static int on_family(const struct nlmsghdr *header, void *data)
{
	const struct nlattr *attribute;

	mnl_attr_for_each(attribute, header, sizeof(struct genlmsghdr))
		if (mnl_attr_get_type(attribute) == CTRL_ATTR_FAMILY_ID)
			*(uint16_t *)data = mnl_attr_get_u16(attribute);
	return MNL_CB_STOP;
}

static int open_object(struct client *client, uint32_t type)
{
	char path[4096];

	if (client->object && fclose(client->object) != 0)
		return -1;
	client->object = NULL;
	if (type >= TYPES) {
		errno = EPROTO;
		return -1;
	}
	snprintf(path, sizeof(path), "%s/%s.bin", client->directory, names[type]);
	client->object = fopen(path, "wb");
	return client->object ? 0 : -1;
}

static int on_evidence(const struct nlmsghdr *header, void *data)
{
	struct client *client = data;
	const struct nlattr *attribute;

	mnl_attr_for_each(attribute, header, sizeof(struct genlmsghdr)) {
		size_t size = mnl_attr_get_payload_len(attribute);

		switch (mnl_attr_get_type(attribute)) {
		case TYPE:
			if (open_object(client, mnl_attr_get_u32(attribute)) < 0)
				return MNL_CB_ERROR;
			break;
		case VAL:
			if (!client->object) {
				errno = EPROTO;
				return MNL_CB_ERROR;
			}
			if (fwrite(mnl_attr_get_payload(attribute), 1, size, client->object) != size)
				return MNL_CB_ERROR;
			break;
		}
	}
	return MNL_CB_OK;
}

static int read_evidence(struct client *client, const char *device)
{
	char buffer[512];
	uint16_t family = 0;
	struct nlmsghdr *header;

	if (strlen(device) > 31) {
		errno = EINVAL;
		return -1;
	}
	header = request(client, buffer, GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY);
	mnl_attr_put_strz(header, CTRL_ATTR_FAMILY_NAME, "pci-tsm");
	if (exchange(client, header, on_family, &family) < 0)
		return -1;

	header = request(client, buffer, family, NLM_F_DUMP, EVIDENCE_READ);
	mnl_attr_put_u32(header, TYPE_MASK, (1u << TYPES) - 1);
	mnl_attr_put_strz(header, DEV_NAME, device);
	if (exchange(client, header, on_evidence, client) < 0)
		return -1;
	return client->object ? fclose(client->object) : 0;
}

int main(int argc, char **argv)
{
	struct client client = { 0 };

	if (argc != 3) {
		fprintf(stderr, "usage: %s DEVICE DIR\n", argv[0]);
		return 2;
	}
	client.directory = argv[2];
	client.socket = mnl_socket_open(NETLINK_GENERIC);
	if (!client.socket || mnl_socket_bind(client.socket, 0, MNL_SOCKET_AUTOPID) < 0 ||
	    read_evidence(&client, argv[1]) < 0) {
		fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	mnl_socket_close(client.socket);
	return 0;
}
