// Command volumes provisions a cluster's volumes as folders of the machine that it runs on.
//
// Kubernetes' own host-path provisioner makes folders that only root may write; these are for every user, as a
// file system is that the kubelet has prepared for a pod's group.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// provisioner is what a StorageClass names.
	provisioner = "e2e.shardedetcd.io/folder"
	// wanted is how the volume controller asks an external provisioner for a claim's volume.
	wanted = "volume.kubernetes.io/storage-provisioner"
	// provisioned marks volumes that are ours to remove.
	provisioned = "pv.kubernetes.io/provisioned-by"
	// retryEvery is when claims and volumes are looked at again, so that what failed is tried again.
	retryEvery = 2 * time.Second
)

type folders struct {
	client kubernetes.Interface
	root   string
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "an administrator's kubeconfig")
	root := flag.String("root", "", "where the folders are made")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	config.QPS, config.Burst = 1000, 1000 // a test's claims come all at once
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f := &folders{client: kubernetes.NewForConfigOrDie(config), root: *root}
	factory := informers.NewSharedInformerFactory(f.client, retryEvery)
	watch(factory.Core().V1().PersistentVolumeClaims().Informer(), func(o any) error { return f.provision(ctx, o.(*v1.PersistentVolumeClaim)) })
	watch(factory.Core().V1().PersistentVolumes().Informer(), func(o any) error { return f.remove(ctx, o.(*v1.PersistentVolume)) })
	factory.Start(ctx.Done())
	<-ctx.Done()
}

// watch calls handle with each object that is there, appears or changes, and with all of them again and again.
func watch(informer cache.SharedIndexInformer, handle func(any) error) {
	report := func(o any) {
		if err := handle(o); err != nil {
			log.Print(err)
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: report, UpdateFunc: func(_, o any) { report(o) }})
	if err != nil {
		log.Fatal(err)
	}
}

// provision makes the volume of a claim that waits for one.
func (f *folders) provision(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	if claim.Annotations[wanted] != provisioner || claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil {
		return nil
	}
	name := "pvc-" + string(claim.UID)
	path := filepath.Join(f.root, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // whatever the umask
		return err
	}
	volume := &v1.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisioned: provisioner}},
		Spec: v1.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: claim.Spec.Resources.Requests[v1.ResourceStorage]},
			ClaimRef:                      &v1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}},
			StorageClassName:              *claim.Spec.StorageClassName,
		},
	}
	_, err := f.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if errors.IsAlreadyExists(err) { // the claim has not been bound yet
		return nil
	}
	return err
}

// remove deletes a volume, and what is in it, whose claim is gone.
func (f *folders) remove(ctx context.Context, volume *v1.PersistentVolume) error {
	if volume.Annotations[provisioned] != provisioner || volume.Status.Phase != v1.VolumeReleased {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(f.root, volume.Name)); err != nil {
		return err
	}
	err := f.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}
